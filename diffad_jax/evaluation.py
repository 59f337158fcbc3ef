"""Scoring of whole data sets with a trained model: batches read ahead, padding, calibration and threshold."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax import compiler, memory, nearness
from diffad_jax.assembly import System
from diffad_jax.calibration import (
    COMBINATIONS,
    Calibration,
    calibrate,
    per_datum,
    scores_of_normals,
    standardised_mean,
)
from diffad_jax.console import bar
from diffad_jax.data.dataset import Chosen, Rows, evenly_spaced
from diffad_jax.errors import InputError
from diffad_jax.memory import Memory
from diffad_jax.metrics import threshold
from diffad_jax.nearness import NOT_ASKED, Near
from diffad_jax.noise import key_of
from diffad_jax.sharding import data_mesh, gather, on, own_rows, replicate, split
from diffad_jax.training import Params

MEMORY = "memory"
WAIT = 3.0  # seconds until a bar is shown
# The score of what lies too far away to be told how far; a sum of it over pixels is within float32's range.
HIGHEST = 1e30
Judge = Calibration | Memory
"""A memory where config.scoring.combination is "memory", else a calibration."""


def make_levels(system: System, params: Params, seed: int, batch_size: int) -> Callable[[Rows], np.ndarray]:
    """A function from transformed data [N, ...] to the mean over pixels of each level, [L, N]."""
    summaries = make_summaries(system, params, seed, batch_size, lambda maps: per_datum(maps).T)
    return lambda x: summaries(x).T


def make_summaries(
    system: System, params: Params, seed: int, batch_size: int, summary: Callable[[Array], Array]
) -> Callable[[Rows], np.ndarray]:
    """A function from transformed data [N, ...] to summary(maps [L, B, ...]) -> [B, ...] of all of them, [N, ...]."""
    mesh, key = data_mesh(batch_size), key_of(seed)
    compiled = compiler.jit(on(mesh, lambda p, x, key: summary(system.score.maps(system.denoise(p), x, key))))
    params = replicate(params, mesh)
    return lambda x: joined(lambda x: compiled(params, split(x, mesh), key), x, batch_size)


class Reading(NamedTuple):
    """What the model says of a batch.

    scores: [B]. maps: heat maps [B, H, W], or [B] where the score has no map. errors: [B], the mean of the standardised
    levels, which is what the denoising errors say alone, whatever else the score asks; of a memory the score itself.
    """

    scores: np.ndarray
    maps: np.ndarray
    errors: np.ndarray


def reading(judge: Judge, combination: str, x_0: Array, maps: Array) -> Reading:
    """Data [B, ...] and the score's maps [L, B, ...] of them, read by what the normals showed.

    The heat map is that of the memory, or the mean of the standardised levels, whatever `combination` makes of them: it
    shows nothing of the distance from the nearest normals.
    """
    if isinstance(judge, Memory):
        scores, heat = memory.read(judge, maps)
        errors = scores
    else:
        distances = nearness.distances(judge.near, x_0) if len(judge.near.bank) else jnp.zeros(len(x_0))
        levels = per_datum(maps)
        scores, errors = COMBINATIONS[combination].join(judge, levels, distances), standardised_mean(judge, levels)
        heat = standardised_mean(judge, maps)
    # What lies too far away may leave float32 once its errors are standardised or squared: more anomalous than all else.
    scores, heat, errors = (jnp.minimum(jnp.nan_to_num(x, nan=HIGHEST), HIGHEST) for x in (scores, heat, errors))
    return Reading(scores, heat, errors)  # type: ignore[arg-type]


def batch_reader(
    system: System,
    params: Params,
    judge: Judge,
    combination: str,
    seed: int,
    batch_size: int,
    part: Callable[[Reading], Any],
) -> Callable[[np.ndarray], Any]:
    """A function from a batch of transformed data to part(reading); what `part` leaves out is neither computed nor fetched.

    The judge is an argument of the program: a memory of 90 MB would otherwise be a constant inside it.
    """

    def read(params: Params, judge: Judge, x: Array, key: Array) -> Any:
        return part(reading(judge, combination, x, system.score.maps(system.denoise(params), x, key)))

    mesh, key = data_mesh(batch_size), key_of(seed)
    compiled = compiler.jit(on(mesh, read))
    if isinstance(judge, Calibration) and len(judge.near.bank):
        judge = judge._replace(near=nearness.filled(judge.near))
    params, judge = replicate((params, judge), mesh)
    return lambda x: compiled(params, judge, split(x, mesh), key)


def in_batches(function: Callable[[np.ndarray], Any], x: Rows, batch_size: int) -> Iterator[Any]:
    """The results of function over batches of x [N, ...]: trees of arrays [B, ...], the last ones cut to what is left.

    The last batch is filled up with copies of a row, which are cut off again: one shape, one compilation. Batches are read
    ahead in a thread, and results are fetched one batch late, so that the device waits for neither. Of several processes
    each reads its own rows of a batch and has the results of all. Whoever waits at a terminal for long sees a bar.
    """
    rows = own_rows(batch_size)
    share = rows.stop - rows.start

    def read(start: int) -> np.ndarray:
        first = min(start + rows.start, len(x) - 1)
        return x[first : max(first + 1, min(start + rows.stop, len(x)))]

    pending: Any = None
    reads = grain.MapDataset.range(0, len(x), batch_size).map(read)
    with bar(
        total=len(x),
        desc="scoring",
        unit="datum",
        delay=WAIT,
        leave=False,
        disable=None if jax.process_index() == 0 else True,
    ) as shown:
        for batch in reads.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)):
            if missing := share - len(batch):
                batch = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])
            result = function(batch)
            if pending is not None:
                yield gather(pending)
                shown.update(batch_size)
            pending = result
        if pending is not None:
            left = len(x) - (len(x) - 1) // batch_size * batch_size
            yield jax.tree.map(lambda a: a[:left], gather(pending))


def joined(function: Callable[[np.ndarray], Array], x: Rows, batch_size: int) -> np.ndarray:
    """The results [B, ...] of function over batches of x [N, ...] as one array [N, ...]; see `in_batches`.

    Raises InputError where there is no datum.
    """
    if not len(x):
        raise InputError("data: found none, needed is one datum or more")
    return np.concatenate(list(in_batches(function, x, batch_size)))


def fit_judge(
    system: System,
    params: Params,
    normals: Rows,
    chosen: np.ndarray,
    combination: str,
    seed: int,
    batch_size: int,
    deviations: np.ndarray | None = None,
) -> tuple[Judge, float, np.ndarray]:
    """What scores are judged by, fitted on transformed normals[chosen]: judge, threshold, the scores of these, sorted.

    normals: [N, ...]; as many as there is room for are kept where the combination asks for the nearest. chosen: int [n].
    deviations: see `nearness.views_of`.
    """
    rows = normals[chosen]
    if combination == MEMORY:
        statistics = make_summaries(system, params, seed, batch_size, memory.local_statistics)(rows)
        judge, scores = memory.remember(statistics, seed)
        return judge, threshold(scores), np.sort(scores)
    levels = make_levels(system, params, seed, batch_size)(rows)
    if not COMBINATIONS[combination].near:
        return fit_calibration(levels, combination)
    shape = normals.shape[1:]
    kept = evenly_spaced(len(normals), nearness.most_rows(shape))
    mesh = data_mesh(batch_size)
    signature = compiler.jit(on(mesh, nearness.signature))
    bank, signatures = (
        joined(lambda x: signature(split(x, mesh)), some, batch_size) for some in (Chosen(normals, kept), rows)
    )
    near, distances = nearness.remember(bank, signatures, np.isin(chosen, kept), shape, deviations)
    return fit_calibration(levels, combination, near, distances)


def fit_calibration(
    levels: np.ndarray, combination: str, near: Near = NOT_ASKED, distances: np.ndarray | None = None
) -> tuple[Calibration, float, np.ndarray]:
    """Of training normals' levels [L, N]: calibration, threshold on the combined score, the combined scores, sorted.

    distances: [N] of `nearness.remember`, where the combination asks for them.
    """
    calibration = calibrate(levels, near)
    scores = np.sort(scores_of_normals(calibration, levels, combination, distances))
    return calibration, threshold(scores), scores
