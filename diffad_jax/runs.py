"""A run: one config, one training set, one work directory. The story of training; `detector` uses what it leaves."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import samplers
from diffad_jax.assembly import System, assemble
from diffad_jax.build import build
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.pipeline import Pipeline
from diffad_jax.errors import InputError
from diffad_jax.evaluation import fit_calibration, make_levels
from diffad_jax.loop import fit
from diffad_jax.training import Params, TrainState, init_state, make_optimizer, make_train_step
from diffad_jax.workdir import Statistics, save_config


class Training(NamedTuple):
    """config.training: how long, in what portions, and what is averaged. See `loop.fit` and `training.make_train_step`."""

    num_steps: int
    batch_size: int = 64
    steps_per_dispatch: int = 1
    ema_decay: float = 0.999
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000


class Scoring(NamedTuple):
    """config.scoring: how many data are scored at once, how many training normals calibrate the score, and from which time
    and in how many steps the reconstructions of a report are made."""

    batch_size: int = 256
    calibration_rows: int = 256
    picture_time: float = 0.5
    picture_steps: int = 10


def start(config: ConfigDict, shape: tuple[int, ...]) -> tuple[System, TrainState, Any, Training]:
    """The system, the state before the first step, the compiled-to-be train step and the training settings."""
    system = assemble(config, shape)
    training: Training = build("training", {"Training": Training}, {"name": "Training", **config.training})
    _check_counts("training", training)
    if training.batch_size % training.accumulate:
        raise InputError(
            f"config.training.accumulate: found {training.accumulate}, which does not divide batch_size {training.batch_size}"
        )
    spec = {"name": "make_optimizer", **config.optimizer}
    optimizer = build("optimizer", {"make_optimizer": make_optimizer}, spec, num_steps=training.num_steps)
    # The default generator takes three times as long to compile for a network's many small draws.
    state = init_state(jax.jit(system.init)(jax.random.key(config.seed, impl="rbg")), optimizer)
    step = make_train_step(system.loss, optimizer, training.batch_size, training.ema_decay, training.accumulate)
    return system, state, step, training


def check(system: System, params: Params, shape: tuple[int, ...]) -> None:
    """Traces loss, score and sampler without computing, so that what they refuse is refused before anything is written."""

    def trace(params: Params, key: Array) -> tuple[Array, Array, Array]:
        x, denoise = jnp.zeros((1, *shape)), system.denoise(params)
        loss, maps = system.loss(params, x, jnp.zeros(1), key[None]), system.score.maps(denoise, x, key)
        return loss, maps, samplers.sample(system.sampler, denoise, x, samplers.uniform(1), key)

    jax.eval_shape(trace, params, jax.random.key(0))


def train(config: ConfigDict, dataset: Dataset, workdir: Path, progress: bool = True) -> None:
    """Trains on dataset.train and leaves config, checkpoints, logs and statistics in workdir; continues a run begun there."""
    if (workdir / "config.json").exists():
        # Another config is refused, and a finished run left, before anything is compiled.
        save_config(workdir, config)
        if (workdir / "statistics.npz").exists():
            return
    transform = transforms.fit(train=dataset.train, **config.transform)
    scoring, pipeline = scoring_of(config), pipeline_of(config, dataset.train.shape[1:])
    system, state, step, settings = start(config, dataset.train.shape[1:])
    check(system, state.params, dataset.train.shape[1:])
    save_config(workdir, config)
    train_rows = transform.view(dataset.train)
    started = time.perf_counter()
    state = fit(
        step,
        state,
        train_rows,
        workdir,
        seed=config.seed,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        steps_per_dispatch=settings.steps_per_dispatch,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        pipeline=pipeline,
        progress=dataset.name if progress else None,
    )
    seconds = time.perf_counter() - started
    # Evenly spaced rows, so that files sorted by class are represented whole.
    rows = np.linspace(0, len(train_rows) - 1, min(scoring.calibration_rows, len(train_rows))).round().astype(int)
    levels = make_levels(system, state.ema, config.seed, scoring.batch_size)(train_rows[rows])
    calibration, threshold = fit_calibration(levels)
    facts = {"n_train": len(train_rows), "seconds_train": seconds}
    Statistics(transform, calibration, threshold, facts).save(workdir)


def scoring_of(config: ConfigDict) -> Scoring:
    """config.scoring, checked."""
    scoring: Scoring = build("scoring", {"Scoring": Scoring}, {"name": "Scoring", **config.scoring})
    _check_counts("scoring", scoring)
    return scoring


def pipeline_of(config: ConfigDict, shape: tuple[int, ...]) -> Pipeline:
    """config.pipeline, checked against the shape of one datum; the defaults where the config has none."""
    pipeline: Pipeline = build("pipeline", {"Pipeline": Pipeline}, {"name": "Pipeline", **config.get("pipeline", {})})
    _check_counts("pipeline", pipeline, may_be_0=("workers",))
    if pipeline.flip and len(shape) != 3:
        raise InputError(f"config.pipeline.flip: needs pictures [H, W, C], found data of shape {shape}")
    return pipeline


def _check_counts(key: str, settings: Training | Scoring | Pipeline, may_be_0: tuple[str, ...] = ()) -> None:
    for name, value in settings._asdict().items():
        least = 0 if name in may_be_0 else 1
        if type(value) is int and value < least:
            raise InputError(f"config.{key}.{name}: found {value}, allowed is {least} or more")
