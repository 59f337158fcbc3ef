"""What numbers and names a config may hold: outside of these a run would train, and score nonsense without a word."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffad_jax.errors import InputError, check_choice, suggestion


class Range(NamedTuple):
    """The finite numbers from low to high; `without` those of the two that are not in it."""

    low: float
    high: float = math.inf
    without: tuple[float, ...] = ()

    def holds(self, value: Any) -> bool:
        number = isinstance(value, Real) and not isinstance(value, bool | np.bool) and math.isfinite(value)
        return number and self.low <= value <= self.high and value not in self.without

    def __str__(self) -> str:
        low = f"{'above' if self.low in self.without else 'from'} {self.low:g}"
        high = f" {'below' if self.high in self.without else 'up to'} {self.high:g}" if self.high < math.inf else ""
        return f"numbers {low}{high}"


COUNT, FROM_0, POSITIVE = Range(1), Range(0), Range(0, without=(0,))
SHARE, TIME = Range(0, 1), Range(0, 1, without=(0,))
BELOW_1 = Range(0, 1, without=(1,))
RANGES = {
    "seed": Range(0, 2**32 - 1),
    "process.num_steps": Range(2),
    "process.beta_min": Range(0, 1, without=(0, 1)),
    "process.beta_max": Range(0, 1, without=(0, 1)),
    "process.offset": FROM_0,
    "process.noise_min": POSITIVE,
    "process.noise_max": POSITIVE,
    "model.width": COUNT,
    "model.depth": COUNT,
    "model.unroll": COUNT,
    "model.features": COUNT,
    "model.channels": Range(2),
    "model.channel_multipliers": COUNT,
    "model.num_blocks": COUNT,
    "model.num_heads": COUNT,
    "model.patch_size": COUNT,
    "model.norm_groups": COUNT,
    "model.head_channels": COUNT,
    "model.dropout": BELOW_1,
    "denoiser.sigma_data": POSITIVE,
    "denoiser.clip": POSITIVE,
    "decoder.levels": Range(2),
    "optimizer.learning_rate": FROM_0,
    "optimizer.clip_norm": POSITIVE,
    "optimizer.warmup": SHARE,
    "optimizer.weight_decay": FROM_0,
    "optimizer.b2": BELOW_1,
    "loss.gamma": POSITIVE,
    "loss.focus": SHARE,
    "loss.focus_share": SHARE,
    "loss.num_steps": Range(2),
    "loss.bound_weight": FROM_0,
    "sampler.eta": SHARE,
    "training.num_steps": COUNT,
    "training.batch_size": COUNT,
    "training.steps_per_dispatch": COUNT,
    "training.ema_decay": SHARE,
    "training.accumulate": COUNT,
    "training.log_every": COUNT,
    "training.checkpoint_every": COUNT,
    "training.validation_rows": FROM_0,
    "training.suspected": Range(0, 0.25),
    "mesh.fsdp": COUNT,
    "pipeline.workers": FROM_0,
    "pipeline.threads": COUNT,
    "pipeline.crop": FROM_0,
    "score.times": TIME,
    "score.num_steps": COUNT,
    "score.num_draws": COUNT,
    "scoring.batch_size": COUNT,
    "scoring.calibration_rows": Range(2),
    "scoring.smoothing": FROM_0,
    "scoring.picture_time": TIME,
    "scoring.picture_steps": COUNT,
}
SECTIONS = (
    "seed",
    "transform",
    "process",
    "model",
    "denoiser",
    "loss",
    "optimizer",
    "training",
    "sampler",
    "decoder",
    "score",
    "scoring",
)
OPTIONAL_SECTIONS = ("data", "pipeline", "parallel", "mesh")
CHOICES = {"model.dtype": ("float32", "bfloat16"), "training.keep": ("last", "best"), "parallel": ("jit", "pmap")}
LISTS = ("model.channel_multipliers", "loss.focus", "score.times")


def check_sections(config: Mapping[str, Any], *needed: str) -> None:
    """Raises InputError where one of SECTIONS, or of those `needed` besides, is missing, and on what is none of them."""
    for name, section in config.items():
        if name not in (*SECTIONS, *OPTIONAL_SECTIONS):
            raise InputError(f"config.{name}: no such section; {suggestion(name, (*SECTIONS, *OPTIONAL_SECTIONS))}")
        if name not in ("seed", "parallel") and not isinstance(section, Mapping | ConfigDict):
            raise InputError(f"config.{name}: found {section!r}, allowed is a section of names and values")
    if missing := [name for name in (*SECTIONS, *needed) if name not in config]:
        raise InputError(f"config: has no {', '.join(missing)}")


def check_ranges(config: Mapping[str, Any]) -> None:
    """Raises InputError on a number, or list of one or more numbers, out of its range, and a name that is none of CHOICES."""
    for path, allowed in RANGES.items():
        value = _at(config, path)
        if value is None:
            continue
        kind, values = ("lists of ", value) if path in LISTS else ("", [value])
        if not isinstance(values, list | tuple) or not values or not all(map(allowed.holds, values)):
            raise InputError(f"config.{path}: found {value!r}, allowed are {kind}{allowed}")
    for path, names in CHOICES.items():
        if (value := _at(config, path)) is not None:
            check_choice(f"config.{path}", value, names)


def _at(config: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    return (config.get(section, {}) if section else config).get(name)
