"""All detectors behind one signature: normals and test rows in, anomaly scores and seconds out. No files, no test labels."""

import json
import math
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import baselines, compiler, defaults, dte, nearness, neighbours
from diffad_jax.calibration import Calibration, calibrate, per_datum, standardised_mean
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Rows, chunks, evenly_spaced
from diffad_jax.data.pipeline import batch_rows
from diffad_jax.data.transforms import Transform
from diffad_jax.errors import Diverged, InputError, check_choice
from diffad_jax.evaluation import joined
from diffad_jax.nearness import Near
from diffad_jax.noise import key_of
from diffad_jax.plan import define
from diffad_jax.settings import scoring_of
from diffad_jax.training import (
    Batch,
    Loss,
    Params,
    Training,
    TrainState,
    init_state,
    make_dispatch,
    make_optimizer,
    make_train_step,
)

Scorer = Callable[[Rows], np.ndarray]
"""test rows [M, D] -> anomaly scores [M]."""
Fit = Callable[[Rows, int], Scorer]
"""(training normals [N, D], seed) -> Scorer."""


class Detection(NamedTuple):
    """scores: float64 [M], higher = more anomalous. The classical detectors fit and score in one call, timed as scoring."""

    scores: np.ndarray
    seconds_train: float
    seconds_score: float


def detect(name: str, train: Rows, test: Rows, seed: int = 0) -> Detection:
    """Fits METHODS[name] on the normals `train` [N, D] and scores `test` [M, D]; the same for the same arguments.

    Raises InputError on an unknown name, on rows that are not finite vectors of one width, and on none; Diverged where
    training failed.
    """
    check_choice("method", name, METHODS)
    if odd := [rows for rows in (train, test) if not hasattr(rows, "shape")]:
        raise InputError(f"{name}: found rows as a {type(odd[0]).__name__}, allowed are arrays [N, D]")
    if not len(test):
        raise InputError(f"{name}: found no test rows, needed is one or more")
    if len(train.shape) != 2 or train.shape[1:] != test.shape[1:]:
        raise InputError(f"{name}: train has shape {train.shape}, test {test.shape}, allowed are [N, D] and [M, D]")
    started = time.perf_counter()
    score = METHODS[name](train, seed)
    fitted = time.perf_counter()
    scores = np.asarray(score(test), np.float64)
    return Detection(scores, fitted - started, time.perf_counter() - fitted)


# --- what all diffusion methods share -----------------------------------------------------------------------------------

WHITENING = defaults.mlp().transform


def in_chunks(transform: Transform, score: Callable[[np.ndarray], np.ndarray], test: Rows) -> np.ndarray:
    """score over the transformed test rows, a few million values at a time."""
    return np.concatenate([score(transform.apply(test[start:stop])) for start, stop in chunks(test)])


class Programs(NamedTuple):
    """A network's compiled programs. Those of one config are shared by all data of one width."""

    init: Callable[[Array], Params]
    blank: TrainState
    """The state before the first step, but for its parameters."""
    dispatch: Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]
    levels: Callable[[Params, Array, Array], Array]
    """(params, x [B, D], key) -> scores of each level [B, L]."""
    settings: Training
    batch_size: int
    """Rows scored at once."""


def train(programs: Programs, transform: Transform, normals: Rows, seed: int) -> Params:
    """The averaged parameters after training on the transformed normals; only rows that are drawn are ever transformed.

    Raises Diverged where the loss is not finite at the end.
    """
    steps, batch = programs.settings.num_steps, programs.settings.batch_size
    drawn, places = np.unique(batch_rows(seed, len(normals), 0, steps * batch), return_inverse=True)
    rows, places = transform.apply(normals[drawn]), places.reshape(steps, batch)
    key = key_of(seed)
    params = programs.init(jax.random.key(seed, impl="rbg"))
    # Copies, because the dispatch takes the buffers of the state that it is given.
    state = jax.tree.map(jnp.copy, programs.blank._replace(params=params, ema=params))
    for first in range(0, steps, programs.settings.steps_per_dispatch):
        now = places[first : first + programs.settings.steps_per_dispatch]
        place = np.tile(np.arange(batch), (len(now), 1))
        state, metrics = programs.dispatch(state, Batch(jnp.asarray(rows[now]), jnp.asarray(place)), key)
    if not math.isfinite(loss := float(metrics["loss"])):
        raise Diverged(f"the loss is {loss} after {steps} steps")
    return state.ema


def scorer(
    programs: Callable[[int], Programs], params: Params, transform: Transform, normals: Rows, seed: int
) -> Scorer:
    """The scorer of a trained network of `programs(width)`: its level, or the mean of several, standardised.

    Each is standardised by some of the normals. One keeps its own unit, which detectors fitted on other normals share.
    """
    levels, compiled = partial(levels_of, programs, params, seed), programs(normals.shape[1])
    batch = jax.ShapeDtypeStruct((compiled.batch_size, normals.shape[1]), jnp.float32)
    calibration = None
    if jax.eval_shape(compiled.levels, params, batch, key_of(seed)).shape[1] > 1:
        calibration = calibrate(levels(transform.apply(normals[evenly_spaced(len(normals), compiled.batch_size)])))
    return partial(in_chunks, transform, partial(mean_level, calibration, levels))


def levels_of(programs: Callable[[int], Programs], params: Params, seed: int, x: np.ndarray) -> np.ndarray:
    """The levels [L, M] of transformed rows x [M, D], by a trained network."""
    compiled, key = programs(x.shape[1]), key_of(seed)
    return joined(lambda x: compiled.levels(params, jnp.asarray(x), key), x, compiled.batch_size).T


def mean_level(
    calibration: Calibration | None, levels: Callable[[np.ndarray], np.ndarray], x: np.ndarray
) -> np.ndarray:
    """The mean [M] of the levels of transformed rows x [M, D], standardised where there is a calibration."""
    found = levels(x)
    return found[0] if calibration is None else np.asarray(standardised_mean(calibration, jnp.asarray(found)))


def network(programs: Callable[[int], Programs]) -> Fit:
    """The detector that trains the network of `programs(width)`."""

    def fit(normals: Rows, seed: int) -> Scorer:
        transform = transforms.fitted(WHITENING, normals)
        params = train(programs(normals.shape[1]), transform, normals, seed)
        return scorer(programs, params, transform, normals, seed)

    return fit


def diffusion_programs(config: ConfigDict, width: int) -> Programs:
    """The programs of a config for data of a width; equal configs share them."""
    return _diffusion_programs(config.to_json(sort_keys=True), width)


@lru_cache(maxsize=32)
def _diffusion_programs(config: str, width: int) -> Programs:
    spec = ConfigDict(json.loads(config))
    system, init, step, settings = define(spec, (width,))
    levels = compiler.jit(lambda params, x, key: per_datum(system.score.maps(system.denoise(params), x, key)).T)
    dispatch = make_dispatch(step, settings.steps_per_dispatch)
    return Programs(jax.jit(system.init), init(), dispatch, levels, settings, scoring_of(spec).batch_size)


# --- diffusion time estimation ------------------------------------------------------------------------------------------

# The published code trains for 400 epochs. The loss on normals that were held out rises from here on, but for that of inverse
# gamma where rows are many, which falls for some time (docs/choices.md).
TIME_ESTIMATION = Training(num_steps=400, batch_size=128, steps_per_dispatch=100, ema_decay=0.99)
LONGER_FROM_ROWS, LONGER_STEPS = 500, 1000
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 5e-4
HIDDEN = (256, 512, 256)


@lru_cache(maxsize=32)
def _time_programs(
    loss: Loss, measure: Callable[[Any, Array], Array], outputs: int, settings: Training, width: int
) -> Programs:
    optimizer = make_optimizer(settings.num_steps, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    init = jax.jit(partial(dte.init, widths=(width, *HIDDEN, outputs)))
    blank = init_state(init(jax.random.key(0, impl="rbg")), optimizer)
    step = make_train_step(loss, optimizer, settings.batch_size, settings.ema_decay)
    levels = jax.jit(lambda params, x, key: measure(params, x)[:, None])
    return Programs(init, blank, make_dispatch(step, settings.steps_per_dispatch), levels, settings, batch_size=1024)


def dte_c(normals: Rows, seed: int) -> Scorer:
    """Categorical diffusion time estimation on whitened rows, see `dte.categorical_loss`."""
    programs = partial(_time_programs, dte.categorical_loss, dte.categorical_score, dte.NUM_BINS, TIME_ESTIMATION)
    return network(programs)(normals, seed)


def dte_ig(normals: Rows, seed: int) -> Scorer:
    """Diffusion time estimation by an inverse gamma on whitened rows, see `dte.inverse_gamma_loss`."""
    settings = TIME_ESTIMATION
    if len(normals) >= LONGER_FROM_ROWS:
        settings = settings._replace(num_steps=LONGER_STEPS)
    return network(partial(_time_programs, dte.inverse_gamma_loss, dte.inverse_gamma_score, 1, settings))(normals, seed)


MOST_JUDGED = 2048  # normals, by whose distances from the others a distance is called far


def bank_of(normals: Rows, transform: Transform) -> np.ndarray:
    """The transformed normals, or as many as a run keeps of them, evenly spaced."""
    return transform.apply(normals[evenly_spaced(len(normals), nearness.most_rows(normals.shape[1:]))])


def dte_np(normals: Rows, seed: int) -> Scorer:
    """Non-parametric diffusion time estimation on whitened rows, see `dte.non_parametric`."""
    transform = transforms.fitted(WHITENING, normals)
    bank = bank_of(normals, transform)
    return partial(in_chunks, transform, partial(dte.non_parametric, bank=bank))


def ours(normals: Rows, seed: int) -> Scorer:
    """Diffusion time in local units and three views of the rows, see `nearness`."""
    transform = transforms.fitted(WHITENING, normals)
    bank = bank_of(normals, transform)
    judged = bank[evenly_spaced(len(bank), MOST_JUDGED)]
    members = np.ones(len(judged), bool)
    near, _ = nearness.remember(bank, judged, members, bank.shape[1:], transform.deviations)
    return partial(in_chunks, transform, partial(_distances, nearness.filled(near)))


def _distances(near: Near, x: np.ndarray) -> np.ndarray:
    return joined(lambda batch: _near(near, jnp.asarray(batch)), x, neighbours.BATCH)


_near = jax.jit(nearness.distances)


def classical(name: str) -> Fit:
    """A detector of `baselines`."""
    return lambda normals, seed: lambda test: baselines.fit_score(name, np.asarray(normals), np.asarray(test), seed)


METHODS: dict[str, Fit] = {
    "iforest": classical("iforest"),
    "ocsvm": classical("ocsvm"),
    "copod": classical("copod"),
    "knn": classical("knn"),
    "ddpm": network(partial(diffusion_programs, defaults.mlp())),
    "dit": network(partial(diffusion_programs, defaults.dit())),
    "dte_c": dte_c,
    "dte_ig": dte_ig,
    "dte_np": dte_np,
    "ours": ours,
}
