"""A memory of normals, place by place: how far is each part of a picture from every part of a normal one?

The maps of a score are read in overlapping windows. What a window says, the logarithms of its means, is compared with what
windows of training normals said; the squared distance to the nearest is the anomaly map. It is the non-parametric
estimate of diffusion time (`dte.non_parametric` with one neighbour) of a part in place of a whole datum, in whitened
statistics of the denoiser in place of raw values. One Gaussian a place, the alternative, is blind where normals are of
several kinds. Source of the bank of patches: Roth et al. 2022, "Towards total recall in industrial anomaly detection",
section 3, whose features are those of a network that was trained on ImageNet.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.ndimage import gaussian_filter

from diffad_jax.calibration import FOLDS, TINY, spread
from diffad_jax.errors import InputError

PLACES = 32  # along a side, about
WINDOW = 4  # places along a window's side: about an eighth of the picture
BANK_ROWS = 2**20  # all windows of a thousand pictures of 32 x 32 places; fewer find less (docs/pictures.md)
CHUNK = 1024  # windows of the bank
TILE = 2048  # and of pictures that are compared at once
SHRINKAGE = 0.2
TOP = 0.01
PART = 32  # normals whose own distances are found at once
MIN_NORMALS = 4


class Memory(NamedTuple):
    """What is kept of normals with F statistics at h x w places.

    mean, scale: [h, w, F], of each statistic at each place. whitening: [F, F]. bank: [M, F], whitened statistics.
    unit: [h, w], the mean squared distance of a normal from other normals at this place, divided by F, see `remember`.
    """

    mean: Array
    scale: Array
    whitening: Array
    bank: Array
    unit: Array

    def heat_of_usual_error(self) -> float:
        """How much brighter a heat map is, see `read`, where a distance grows by the normals' mean one."""
        return 1.0


def local_statistics(maps: Array) -> Array:
    """[L, B, H, W] -> [B, h, w, 2 L]: logarithms of the means over windows, and the same less the picture's median of each.

    The second half does not change with a picture's exposure, the first knows of it. Windows of about an eighth of a side,
    4 pixels at least, lie H / 32 pixels apart, rounded, and are cut off at the border.
    Raises InputError where maps are no pictures.
    """
    if maps.ndim != 4:
        raise InputError("config.scoring.combination: 'memory' needs a score with maps of pictures, found one without")
    stride = tuple(max(1, round(size / PLACES)) for size in maps.shape[2:])
    window = tuple(min(WINDOW * step, size) for step, size in zip(stride, maps.shape[2:], strict=True))

    def total(x: Array) -> Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, *window), (1, 1, *stride), "SAME")

    means = total(maps) / total(jnp.ones_like(maps[:1, :1]))
    found = jnp.moveaxis(jnp.log(jnp.maximum(means, TINY)), 0, -1)
    return jnp.concatenate([found, found - jnp.median(found, axis=(1, 2), keepdims=True)], axis=-1)


def check_enough(count: int) -> None:
    """Raises InputError where there are fewer normals than a memory needs."""
    if count < MIN_NORMALS:
        raise InputError(
            f"config.scoring: combination 'memory' needs {MIN_NORMALS} normals or more, found {count} by "
            "scoring.calibration_rows or, where set, training.validation_rows"
        )


def remember(statistics: np.ndarray, seed: int) -> tuple[Memory, np.ndarray]:
    """The memory of normals with the given local statistics [N, h, w, F], N >= 4, and the scores [N] of those normals.

    Each of ten random parts is scored by the memory of the others, since a window would find itself in its own; of fewer
    parts the memories would know so much less than the whole that new normals would score far below these; by ten they still
    score a little below, so that of 99 Gaussian normals 2.5 % of new ones exceed a threshold for 5 %. Statistics
    are standardised at each place, then whitened by their correlations C over all places, shrunk to 0.8 C + 0.2 I. The bank
    holds all windows, or 2^20 of them drawn with `seed`. The unit of a place is the normals' mean distance there, blurred by
    half a window: where an object seldom reaches, a normal's windows are of noise or rare, and lie far from all others. It is
    scaled so that the normals' distances, each in a unit that others have set, are 1 on the mean.
    Raises InputError on fewer than 4 normals.
    """
    check_enough(len(statistics))
    order = np.random.default_rng(seed).permutation(len(statistics))
    parts = np.array_split(order, min(FOLDS, len(order)))
    distances = np.empty(statistics.shape[:3], np.float32)
    for own in parts:
        distances[own] = _in_parts(_remember(np.delete(statistics, own, axis=0), seed), statistics[own])
    ratios = np.empty_like(distances)
    for own in parts:
        ratios[own] = distances[own] / _blurred_mean(np.delete(distances, own, axis=0))
    excess = ratios.mean() or 1.0
    unit = jnp.asarray(excess * _blurred_mean(distances), jnp.float32)
    return _remember(statistics, seed)._replace(unit=unit), np.asarray(_of_picture(jnp.asarray(ratios / excess)))


def read(memory: Memory, maps: Array) -> tuple[Array, Array]:
    """Maps [L, B, H, W] of a score -> (scores [B], anomaly maps [B, H, W]).

    At each place d / m - 1, d the squared distance to the nearest window of the bank (`nearest`) and m the place's `unit`:
    about 0 for normals. The score is the mean of the highest hundredth of the places, the map is interpolated between them.
    Raises InputError where the maps have another number of places than the memory.
    """
    statistics = local_statistics(maps)
    if statistics.shape[1:3] != memory.mean.shape[:2]:
        raise InputError(
            f"statistics.npz: its memory has {memory.mean.shape[:2]} places, pictures now give {statistics.shape[1:3]}; "
            "delete it and repeat the run's experiments.train command"
        )
    ratios = nearest(memory, statistics) / memory.unit
    return _of_picture(ratios), jax.image.resize(ratios - 1, maps.shape[1:], "linear")


def nearest(memory: Memory, statistics: Array) -> Array:
    """min_i |q - b_i|^2 / F over the bank, q the whitened statistics: [B, h, w, F] -> [B, h, w]."""
    count, features = memory.bank.shape
    query = jnp.dot((statistics - memory.mean) / memory.scale, memory.whitening, precision="highest")
    bank = jnp.pad(memory.bank, ((0, -count % CHUNK), (0, 0)), mode="edge").reshape(-1, CHUNK, features)
    parts = bank, (bank**2).sum(axis=2)

    def of_tile(tile: Array) -> Array:
        def closer(least: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            # |q|^2, the same for all rows, is added at the end.
            square = part[1] - 2 * jnp.dot(tile, part[0].T, precision="highest")
            return jnp.minimum(least, square.min(axis=-1)), None

        return jax.lax.scan(closer, jnp.full(tile.shape[:-1], jnp.inf, tile.dtype), parts)[0]

    # Some places of all pictures at a time, so that their products with a chunk stay in a processor's cache, and pictures
    # with the devices they are on.
    batch, places = len(query), query.shape[1] * query.shape[2]
    size = min(places, max(1, TILE // batch))
    tiles = jnp.pad(query.reshape(batch, places, features), ((0, 0), (0, -places % size), (0, 0)))
    tiles = jnp.moveaxis(tiles.reshape(batch, -1, size, features), 1, 0)
    found = jnp.moveaxis(jax.lax.map(of_tile, tiles), 0, 1)
    least = found.reshape(batch, -1)[:, :places].reshape(query.shape[:-1])
    return jnp.maximum(least + (query**2).sum(axis=-1), 0.0) / features


def _blurred_mean(distances: np.ndarray) -> np.ndarray:
    """The mean of normals' distances [N, h, w] at each place, blurred by half a window: [h, w].

    No less than a hundredth of that over all places: where all normals agree the least difference would outweigh all else.
    """
    mean = distances.mean(axis=0)
    return np.maximum(gaussian_filter(mean, WINDOW / 2), max(mean.mean() / 100, TINY))


def _of_picture(ratios: Array) -> Array:
    """Distances in units [B, h, w] -> [B]: the mean of the highest hundredth, less 1."""
    places = ratios.reshape(len(ratios), -1)
    highest, _ = jax.lax.top_k(places, max(1, round(TOP * places.shape[1])))
    return highest.mean(axis=1) - 1


def _remember(statistics: np.ndarray, seed: int) -> Memory:
    features = statistics.shape[-1]
    mean, scale = statistics.mean(axis=0), spread(statistics)
    rows = ((statistics - mean) / scale).reshape(-1, features)
    correlation = (1 - SHRINKAGE) * (rows.T @ rows) / len(rows) + SHRINKAGE * np.eye(features)
    values, vectors = np.linalg.eigh(correlation)
    whitening = vectors / np.sqrt(values)
    if len(rows) > BANK_ROWS:
        rows = rows[np.random.default_rng(seed).choice(len(rows), BANK_ROWS, replace=False)]
    arrays = mean, scale, whitening, rows @ whitening, 1.0
    return Memory(*(jnp.asarray(array, jnp.float32) for array in arrays))


_nearest = jax.jit(nearest)


def _in_parts(memory: Memory, statistics: np.ndarray) -> np.ndarray:
    parts = [np.asarray(_nearest(memory, statistics[i : i + PART])) for i in range(0, len(statistics), PART)]
    return np.concatenate(parts)
