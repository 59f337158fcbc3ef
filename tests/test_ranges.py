"""Numbers of a config that would train and score nonsense are refused before anything is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import logging
from ml_collections import ConfigDict

from diffad_jax import assembly, plan, runs, workdir
from diffad_jax.calibration import COMBINATIONS, calibrate
from diffad_jax.data import transforms
from diffad_jax.data.dataset import one_class_split
from diffad_jax.data.loading import load
from diffad_jax.errors import InputError, RunFailed
from diffad_jax.process import log_linear
from diffad_jax.ranges import OPTIONAL_SECTIONS, RANGES, SECTIONS, check_ranges
from diffad_jax.scores import Score
from diffad_jax.statistics import Statistics
from experiments import reference


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "config.seed: found -1, allowed are numbers from 0 up to"),
        ("score.times", (0.0,), r"config.score.times: found \(0.0,\), allowed are lists of numbers above 0 up to 1"),
        ("score.times", (), r"config.score.times: found \(\), allowed are lists of numbers"),
        ("score.times", (0.5, 1.5), "config.score.times"),
        ("score.times", (0.5, "a"), "config.score.times"),
        ("score.times", 0.5, "config.score.times: found 0.5, allowed are lists of numbers"),
        ("score.num_draws", 0, "config.score.num_draws: found 0, allowed are numbers from 1"),
        ("denoiser.sigma_data", 0.0, "config.denoiser.sigma_data: found 0.0, allowed are numbers above 0"),
        ("model.channel_multipliers", (), "config.model.channel_multipliers"),
        ("training.ema_decay", 1.5, "config.training.ema_decay: found 1.5, allowed are numbers from 0 up to 1"),
        ("training.ema_decay", float("nan"), "config.training.ema_decay: found nan"),
        (
            "training.validation_rows",
            1,
            "config.training.validation_rows: found 1, allowed are whole numbers from 2, shares",
        ),
        ("training.batch_size", 0, "config.training.batch_size: found 0, allowed are numbers from 1"),
        ("training.batch_size", 2.5, "config.training.batch_size: found 2.5, allowed is a whole number"),
        ("pipeline.workers", -1, "config.pipeline.workers: found -1, allowed are numbers from 0"),
        ("pipeline.threads", 0, "config.pipeline.threads: found 0, allowed are numbers from 1"),
        ("optimizer.clip_norm", True, "config.optimizer.clip_norm: found True"),
        ("optimizer.learning_rate", float("inf"), "config.optimizer.learning_rate: found inf"),
        ("optimizer.b2", 1.0, "config.optimizer.b2: found 1.0, allowed are numbers from 0 below 1"),
        ("loss.gamma", -5.0, "config.loss.gamma: found -5.0, allowed are numbers above 0"),
        ("model.attention_factors", "two", "config.model.attention_factors: found 'two', allowed is a list"),
        ("model.attention_factors", (3,), r"attention_factors: found \(3,\), allowed are some of \[1\]"),
        ("model.channels", 1, "config.model.channels: found 1, allowed are numbers from 2"),
        ("model.dtype", "bf16", "config.model.dtype: found 'bf16'; did you mean 'bfloat16'"),
        ("model.dtype", "float16", "config.model.dtype: found 'float16'; .*'bfloat16'"),
        ("model.head_channels", 0.5, "config.model.head_channels: found 0.5, allowed are numbers from 1"),
        ("score.num_step", 2, r"config.score.num_step: one_step takes no such argument; did you mean 'num_draws'"),
        (
            "score.num_steps",
            2,
            r"config.score.num_steps: one_step takes no such argument \(reconstruction, encode_decode, bound would; ",
        ),
        ("score.bias", 1, "config.score.bias: found 1, allowed is True or False"),
        ("sampler.variance", "fixed", "config.sampler.variance: found 'fixed'; allowed are small, large, learned"),
        ("sampler.variance", "learned", "config.sampler: variance: found 'learned', which needs a network with"),
        ("loss.weighting", "snr", "config.loss.weighting: found 'snr'; did you mean 'min_snr'"),
        ("denoiser.predicts", "epsilon", "config.denoiser.predicts: found 'epsilon'; did you mean 'eps'"),
        ("model.remat", "all", "config.model.remat: found 'all'; allowed are none, blocks, dots"),
        ("model.attention_factors", (2,), "config.model.attention_factors: found \\(2,\\), allowed are some of"),
        ("scoring.calibration_rows", 1, "config.scoring.calibration_rows: found 1, allowed are numbers from 2"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_written(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    config = tiny.get_config()
    section, _, name = key.rpartition(".")
    part = config.get(section, ConfigDict()) if section else config
    if section:
        config[section] = part
    with part.unlocked(), part.ignore_type():
        part[name] = value
    with pytest.raises(InputError, match=message):
        runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_sections_are_checked(tmp_path: Path) -> None:
    config = tiny.get_config()
    config.pipelin = {"crop": 4}
    with pytest.raises(InputError, match="config.pipelin: no such section; did you mean 'pipeline'"):
        runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    del config.pipelin
    for name, value in (("sampler", "ddim"), ("pipeline", None), ("transform", "range")):
        other = tiny.get_config().to_dict() | {name: value}
        with pytest.raises(
            InputError, match=f"config.{name}: found {value!r}, allowed is a section of names and values"
        ):
            runs.train(ConfigDict(other), load(config.data)[0], tmp_path / "run", progress=False)
    without = ConfigDict({k: v for k, v in tiny.get_config().items() if k != "scoring"})
    with pytest.raises(InputError, match="config: has no scoring"):
        runs.train(without, load(config.data)[0], tmp_path / "run", progress=False)
    del config.decoder
    with pytest.raises(InputError, match="config: has no decoder"):
        runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_memory_of_too_few_normals_is_refused_before_training(tmp_path: Path) -> None:
    config = tiny.get_config()
    config.score.update({"num_draws": 2, "bias": True})
    config.scoring.update({"combination": "memory", "calibration_rows": 3})
    with pytest.raises(InputError, match="'memory' needs 4 normals or more, found 3 by scoring.calibration_rows"):
        runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_every_number_that_a_config_may_set_has_a_range() -> None:
    takers = [(section, taker) for section, choices in reference.CHOSEN.items() for taker in choices.values()]
    numbers, names = set(), {"seed"}
    for section, taker in [*takers, *reference.FIXED.items()]:
        for name, parameter in reference.settings(section, taker):
            names.add(f"{section}.{name}")
            if re.search(r"\b(int|float)\b", str(parameter.annotation)) and section not in ("data", "transform"):
                numbers.add(f"{section}.{name}")
    # The network knows its levels. Readers and transforms bound their own.
    assert numbers - {"model.attention_factors"} <= RANGES.keys() <= names


def test_the_page_of_settings_is_what_the_program_takes() -> None:
    page = Path(reference.__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text() == reference.text().rstrip("\n") + "\n", "repeat python -m experiments.reference"
    sections = re.findall(r"(?m)^## config\.(\w+)", page.read_text())
    assert set(sections) == {*SECTIONS, *OPTIONAL_SECTIONS} - {"seed", "parallel"}


def refused(system: assembly.System, combination: str = "standardised_mean") -> None:
    params = jax.eval_shape(system.init, jax.random.key(0))
    plan.check(system, params, system.shape, combination)


def test_what_takes_logarithms_is_refused_with_a_score_that_may_be_negative() -> None:
    config = tiny.get_config("vectors")
    config.score = {"name": "bound"}
    system = assembly.assemble(config, (5,))
    refused(system)
    rest = ", ".join(name for name, one in COMBINATIONS.items() if not one.logarithmic)
    with pytest.raises(InputError, match=f"config.scoring.combination: found 'fisher', .* are {rest}"):
        refused(system, "fisher")
    pictures = assembly.assemble(tiny.get_config("digits"), (8, 8, 1))
    pictures = pictures._replace(score=pictures.score._replace(signed=True))
    with pytest.raises(InputError, match="config.scoring.combination: found 'memory', which takes logarithms"):
        refused(pictures, "memory")


class Odd(nn.Module):
    """A network that breaks one rule: another shape, variables besides parameters, or no learned variance."""

    flaw: str = "shape"

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        if self.flaw == "variables":
            self.variable("batch_stats", "mean", jnp.zeros, 1)
        return nn.Dense(1 if self.flaw == "shape" else x.shape[-1])(x)


@pytest.mark.parametrize(
    ("flaw", "learned_variance", "words"),
    [
        ("shape", False, r"^config.model: gives \(2, 1\) for x_t of \(2, 5\), needed is \(2, 5\)"),
        ("variables", False, "config.model: Odd has batch_stats, allowed are params alone"),
        ("none", True, "config.denoiser.learned_variance: found True, but Odd has no such output"),
    ],
)
def test_networks_that_break_the_rules_are_refused(
    monkeypatch: pytest.MonkeyPatch, flaw: str, learned_variance: bool, words: str
) -> None:
    monkeypatch.setitem(assembly.MODELS, "Odd", Odd)
    config = tiny.get_config("vectors")
    config.model, config.denoiser.learned_variance = {"name": "Odd", "flaw": flaw}, learned_variance
    with pytest.raises(InputError, match=words):
        refused(assembly.assemble(config, (5,)))


def test_noise_rises() -> None:
    with pytest.raises(InputError, match="^noise_min: found 9, allowed is less than noise_max 8"):
        log_linear(9.0, 8.0)


def test_a_run_may_be_laid_out_otherwise_when_it_goes_on(tmp_path: Path) -> None:
    config = tiny.get_config()
    workdir.save_config(tmp_path, config)
    # Settings that say what is so anyway.
    config.scoring.smoothing, config.pipeline, config.training.keep = 0.0, {"flip": False}, "last"
    with config.ignore_type():
        config.data.anomalous_class = "0"
    workdir.save_config(tmp_path, config)
    config.parallel, config.mesh, config.pipeline, config.model.remat = "pmap", {"fsdp": 2}, {"workers": 1}, "blocks"
    workdir.save_config(tmp_path, config)
    config.pipeline.flip = True
    with pytest.raises(
        InputError, match=r"another run's config, differing in config.pipeline.flip \(False there, True"
    ):
        workdir.save_config(tmp_path, config)
    config.pipeline = {}
    del config.score.distance
    with pytest.raises(InputError, match=r"differing in config.score.distance \('l2' there, None asked\)"):
        workdir.save_config(tmp_path, config)


def test_calibration_needs_two_finite_normals() -> None:
    with pytest.raises(InputError, match="needs 2 normals or more, found 1"):
        calibrate(np.ones((3, 1)))
    with pytest.raises(RunFailed, match="1 values of 6 that are no numbers"):
        calibrate(np.array([[1, 2, np.nan], [1, 2, 3]]))
    same = calibrate(np.full((3, 10), 1.7))
    assert (np.asarray(same.log_precision) == np.eye(3)).all() and (np.asarray(same.scale) == 1).all()


@pytest.mark.parametrize("content", [b'{"seed": ', b"[1]"])
def test_a_damaged_config_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json: is damaged"):
        workdir.load_config(tmp_path)
    with pytest.raises(InputError, match="config.json: is damaged"):
        workdir.save_config(tmp_path, tiny.get_config())


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_damaged_statistics_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "statistics.npz").write_bytes(content)
    with pytest.raises(InputError, match="statistics.npz: is damaged"):
        Statistics.load(tmp_path)


def test_statistics_without_a_part_are_named(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).gamma(2, size=(3, 20))
    transform = transforms.fit("range", np.ones((9, 2)), low=0, high=1)
    saved = Statistics(transform, calibrate(levels), 0.5, levels[0], {"n_train": 9}, "rows", "", np.zeros(0))
    saved.save(tmp_path)
    assert Statistics.load(tmp_path).dataset == "rows"
    with np.load(tmp_path / "statistics.npz") as archive:
        rest = {key: archive[key] for key in archive.files if key != "calibration/log_mean"}
    np.savez(tmp_path / "statistics.npz", **rest)
    with pytest.raises(
        InputError, match="statistics.npz: is damaged or of an earlier version .it has .* of mean, scale, log_mean"
    ):
        Statistics.load(tmp_path)
    np.savez(tmp_path / "statistics.npz", **rest, **{"memory/bank": np.zeros(3)})
    with pytest.raises(InputError, match="statistics.npz: of another version .it has memory/bank"):
        Statistics.load(tmp_path)


def test_a_bound_has_two_steps() -> None:
    with pytest.raises(InputError, match="config.loss.num_steps: found 1, allowed are numbers from 2"):
        check_ranges({"loss": {"num_steps": 1}})


def test_a_threshold_of_few_normals_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 18 normals none has the rank of 95 %, of 19 the last has."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: lines.append(message % values))
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    dataset = one_class_split(rows, np.zeros(60, int), "mine", normals_alone=True)
    for held_out in (19, 18):
        config = tiny.get_config("rows")
        config.training.update({"validation_rows": held_out, "num_steps": 1})
        runs.train(config, dataset, tmp_path / str(held_out), progress=False)
    assert lines == [
        "mine: the threshold rests on 18 normals, and needs 19: more than 5 % of new normals may lie above it"
    ]


@pytest.mark.parametrize(
    ("section", "part", "words"),
    [
        ("loss", lambda process: lambda *_: jnp.zeros(()), r"config.loss: its values for 2 data have the shape \(\)"),
        (
            "loss",
            lambda process: lambda denoise, x_0, u, eps: x_0,
            r"config.loss: its .* shape \(2, 5\), needed is \(2,\)",
        ),
        (
            "score",
            lambda: Score(lambda denoise, x_0, key: x_0[:, 0], 1),
            r"config.score: its maps .* shape \(2,\), needed is",
        ),
        (
            "sampler",
            lambda process: print,
            "config.sampler.name: odd gives builtin_function_or_method, needed is Sampler",
        ),
        ("process", lambda: jnp.exp, "config.process.name: odd gives .*, needed is Process"),
    ],
)
def test_parts_of_another_shape_or_kind_are_refused(
    monkeypatch: pytest.MonkeyPatch, section: str, part: Callable[..., Any], words: str
) -> None:
    lists = {"loss": assembly.OBJECTIVES, "score": assembly.SCORES, "sampler": assembly.SAMPLERS}
    monkeypatch.setitem(lists.get(section, assembly.PROCESSES), "odd", part)
    config = tiny.get_config("vectors")
    config[section] = {"name": "odd"}
    with pytest.raises(InputError, match=words):
        refused(assembly.assemble(config, (5,)))


def test_what_parts_ask_of_each_other_is_told_with_the_section_that_asks() -> None:
    config = tiny.get_config("vectors")
    config.loss = {"name": "hybrid"}
    with pytest.raises(
        InputError, match=r"^config.loss: variance: found 'learned', .* config.denoiser.learned_variance=True"
    ):
        refused(assembly.assemble(config, (5,)))
    config = tiny.get_config("vectors")
    config.sampler = {"name": "ddpm", "variance": "learned"}
    with pytest.raises(InputError, match=r"^config.sampler: variance: found 'learned'"):
        refused(assembly.assemble(config, (5,)))
    with pytest.raises(InputError, match=r"^config.model: x_t: found shape \(1, 8, 8, 1\), need \[B, D\]"):
        refused(assembly.assemble(tiny.get_config("vectors"), (8, 8, 1)))
