"""Nearest neighbours by brute force, in bounded memory and with shapes that data sets share."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.errors import InputError

BATCH = 512  # rows of x a pass
AMID = 64  # rows of a bank, about, whose median is found for every batch
CANDIDATES = 16  # a row whose quick distances are noise is likely among so many
TILE = 2**21  # quick distances at once: 8 MiB, which stay near a processor
GROUP = 64  # numbers of which the least is found before they are sorted


def knn(x: np.ndarray, bank: np.ndarray, k: int, units: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest |x - x_i| / h_i over the rows x_i of the bank, ascending, and i: [M, D], [N, D] -> 2 times [M, k].

    units: h [N], 1 if None. Rows pass in batches, and the bank is filled up to a shared shape, so that memory is bounded
    and sets of one width share a compilation.
    Raises InputError where the bank has fewer than k rows.
    """
    if not 1 <= k <= len(bank):
        raise InputError(f"k: found {k}, allowed is 1 to the {len(bank)} rows of the bank")
    middle = middle_of(bank)
    bank = bank - middle
    rows, scale = filled(bank, np.ones(len(bank)) if units is None else units)
    distances, places = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.int32)]
    for start in range(0, len(x), BATCH):
        batch = x[start : start + BATCH] - middle
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0)))
        found, among = nearest(jnp.asarray(padded, jnp.float32), rows, scale, k)
        distances.append(np.asarray(found)[: len(batch)])
        places.append(np.asarray(among)[: len(batch)])
    return np.concatenate(distances), np.concatenate(places)


def knn_distances(x: np.ndarray, bank: np.ndarray, k: int, units: np.ndarray | None = None) -> np.ndarray:
    """The distances of `knn`: float32 [M, k]."""
    return knn(x, bank, k, units)[0]


def middle_of(bank: Any) -> Any:
    """Where the bank [N, D] lies: [D], the median of some of its rows, which a few far ones do not move.

    Distances are taken around it, since the candidates' squares (`nearest`) lose digits far from the origin.
    """
    median = jnp.median if isinstance(bank, Array) else np.median
    return median(bank[:: -(-len(bank) // AMID)], axis=0).astype(np.float32)


def shared_size(count: int) -> int:
    """The number of rows that a bank of `count` is filled up to, so that banks of about one size share compilations."""
    return 256 if count <= 256 else -(-count // 1024) * 1024


def filled(bank: Any, units: Any) -> tuple[Array, Array]:
    """The bank [N, D] and its units [..., N], with so many rows of infinite unit that banks of about one size have one shape.

    The fillers are copies, so that the bank's middle stays about where it was.
    """
    filler = shared_size(len(bank)) - len(bank)
    rows = jnp.resize(jnp.asarray(bank, jnp.float32), (len(bank) + filler, bank.shape[1]))
    units = jnp.asarray(units, jnp.float32)
    return rows, jnp.pad(units, [(0, 0)] * (units.ndim - 1) + [(0, filler)], constant_values=jnp.inf)


@partial(jax.jit, static_argnames="k")
def nearest(x: Array, bank: Array, units: Array, k: int) -> tuple[Array, Array]:
    """The k smallest |x - x_i| / h_i, ascending, and i: [B, D], [N, D], [N] -> 2 times [B, k], k <= N.

    units: h > 0. A row of infinite unit does not count: its distance is infinite.
    Candidates by |x|^2 - 2 x.y + |y|^2, which loses digits to cancellation, then their distances by differences. What is
    found is thus the distance of a row, to rounding; where more than CANDIDATES rows are as near as rounding leaves open, its
    square may be larger than the least one by some 1e-6 |x|^2.
    """
    inverse, absent = 1 / units, jnp.where(jnp.isinf(units), jnp.inf, 0.0)

    def of_tile(x: Array) -> tuple[Array, Array]:
        square = (x**2).sum(1)[:, None] - 2 * jnp.dot(x, bank.T, precision="highest") + (bank**2).sum(1)
        _, candidates = smallest(square * inverse**2 + absent, min(max(k, CANDIDATES), len(bank)))
        exact = ((x[:, None] - bank[candidates]) ** 2).sum(axis=-1)
        distances = jnp.sqrt(exact) * inverse[candidates] + absent[candidates]
        distances, places = jax.lax.sort((distances, candidates), num_keys=1)
        return distances[:, :k], places[:, :k]

    # Every tile has rows of all parts of x, so that these stay with the devices they are on.
    tiles = 1 << (-(-len(x) * len(bank) // TILE) - 1).bit_length()
    if tiles == 1:
        return of_tile(x)
    rows = jnp.pad(x, ((0, -len(x) % tiles), (0, 0))).reshape(-1, tiles, x.shape[1])
    distances, places = (
        jnp.moveaxis(found, 0, 1).reshape(-1, k)[: len(x)] for found in jax.lax.map(of_tile, jnp.moveaxis(rows, 1, 0))
    )
    return distances, places


def smallest(values: Array, k: int) -> tuple[Array, Array]:
    """The k smallest of each row, ascending, the first of equal ones first, and their places: [B, N] -> 2 times [B, k].

    They are in the k groups of neighbours in the row that have the smallest minima, so that only these are sorted: with N =
    32,768 in a sixth of the time that a CPU takes for the k best of the whole row (docs/performance.md).
    """
    batch, count = values.shape
    if count % GROUP or count < 2 * k * GROUP:
        found, places = jax.lax.top_k(-values, k)
        return -found, places
    groups = values.reshape(batch, -1, GROUP)
    # In their order in the row, which decides between equal values.
    chosen = jnp.sort(jax.lax.top_k(-groups.min(axis=2), k)[1])
    candidates = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(batch, -1)
    found, among = jax.lax.top_k(-candidates, k)
    return -found, jnp.take_along_axis(chosen, among // GROUP, axis=1) * GROUP + among % GROUP
