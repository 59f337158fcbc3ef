"""What numbers a config may hold: outside of these a run would train, and score nonsense without a word."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffad_jax.errors import InputError


class Range(NamedTuple):
    """The numbers from low to high; without low itself where it is open."""

    low: float
    high: float = math.inf
    open: bool = False

    def holds(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and not (self.open and value == self.low)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open else f"from {self.low:g}"
        return f"numbers {low}" + (f" up to {self.high:g}" if self.high < math.inf else "")


COUNT, POSITIVE, SHARE, TIME = Range(1), Range(0, open=True), Range(0, 1), Range(0, 1, open=True)
RANGES = {
    "seed": Range(0, 2**32 - 1),
    "process.num_steps": COUNT,
    "process.beta_min": TIME,
    "process.beta_max": TIME,
    "process.noise_min": POSITIVE,
    "process.noise_max": POSITIVE,
    "model.width": COUNT,
    "model.depth": COUNT,
    "model.features": COUNT,
    "model.channels": COUNT,
    "model.channel_multipliers": COUNT,
    "model.num_blocks": COUNT,
    "model.num_heads": COUNT,
    "model.patch_size": COUNT,
    "model.dropout": SHARE,
    "denoiser.sigma_data": POSITIVE,
    "denoiser.clip": POSITIVE,
    "decoder.levels": Range(2),
    "optimizer.learning_rate": Range(0),
    "optimizer.clip_norm": POSITIVE,
    "optimizer.warmup": SHARE,
    "optimizer.weight_decay": Range(0),
    "optimizer.b2": SHARE,
    "training.ema_decay": SHARE,
    "score.times": TIME,
    "score.num_steps": COUNT,
    "score.num_draws": COUNT,
    "scoring.calibration_rows": Range(2),
    "scoring.smoothing": Range(0),
    "scoring.picture_time": TIME,
}
LISTS = ("model.channel_multipliers", "score.times")


def check_ranges(config: Mapping[str, Any]) -> None:
    """Raises InputError on the first number, or list of one or more numbers, of a config that is not in its range."""
    for path, allowed in RANGES.items():
        section, _, name = path.rpartition(".")
        value = (config.get(section, {}) if section else config).get(name)
        if value is None:
            continue
        kind, values = ("lists of ", value) if path in LISTS else ("", [value])
        if not isinstance(values, list | tuple) or not values or not all(map(allowed.holds, values)):
            raise InputError(f"config.{path}: found {value!r}, allowed are {kind}{allowed}")
