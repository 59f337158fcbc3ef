"""Nearest neighbours by brute force, exactly, in bounded memory and with shapes that data sets share."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.errors import InputError

MAX_BANK_ROWS = 10_000
BATCH = 512  # rows of x a pass: distances to MAX_BANK_ROWS take 20 MB
CANDIDATES = 16


def knn_distances(x: np.ndarray, bank: np.ndarray, k: int, units: np.ndarray | None = None) -> np.ndarray:
    """The k smallest |x - x_i| / h_i over the rows x_i of the bank, ascending: [M, D], [N, D] -> float32 [M, k].

    units: h [N], 1 if None. Rows pass in batches, and the bank is filled up to a shared shape, so that memory is bounded
    and sets of one width share a compilation.
    Raises InputError where the bank has fewer than k rows.
    """
    if not 1 <= k <= len(bank):
        raise InputError(f"k: found {k}, allowed is 1 to the {len(bank)} rows of the bank")
    # Around the middle of the bank, since the candidates' squares lose digits far from the origin.
    middle = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
    bank = bank - middle
    filler = shared_size(len(bank)) - len(bank)
    rows = jnp.asarray(np.pad(bank, ((0, filler), (0, 0))), jnp.float32)
    # A filler is infinitely far away: its inverse unit is 0 and its offset infinite.
    weight = np.ones(len(bank)) if units is None else 1 / units
    inverse = jnp.asarray(np.pad(weight, (0, filler)), jnp.float32)
    offset = jnp.asarray(np.pad(np.zeros(len(bank)), (0, filler), constant_values=np.inf), jnp.float32)
    found = [np.zeros((0, k), np.float32)]
    for start in range(0, len(x), BATCH):
        batch = x[start : start + BATCH] - middle
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0)))
        found.append(np.asarray(nearest(jnp.asarray(padded, jnp.float32), rows, inverse, offset, k))[: len(batch)])
    return np.concatenate(found)


def shared_size(count: int) -> int:
    """The number of rows that a bank of `count` is filled up to, so that banks of about one size share compilations."""
    return 256 if count <= 256 else -(-count // 1024) * 1024


@partial(jax.jit, static_argnames="k")
def nearest(x: Array, bank: Array, inverse: Array, offset: Array, k: int) -> Array:
    """The k smallest |x - x_i| inverse_i + offset_i, ascending: [B, D], [N, D], [N], [N] -> [B, k], k <= N.

    offset: 0, or infinity for rows that do not count.
    Candidates by |x|^2 - 2 x.y + |y|^2, which loses digits to cancellation, then their distances by differences.
    """
    square = (x**2).sum(1)[:, None] - 2 * jnp.dot(x, bank.T, precision="highest") + (bank**2).sum(1)
    _, candidates = jax.lax.top_k(-(square * inverse**2 + offset), min(max(k, CANDIDATES), len(bank)))
    exact = ((x[:, None] - bank[candidates]) ** 2).sum(axis=-1)
    return jnp.sort(jnp.sqrt(exact) * inverse[candidates] + offset[candidates], axis=1)[:, :k]


def thinned(rows: Any, seed: int) -> np.ndarray:
    """The bank: all rows [N, D], in memory or on disk, or MAX_BANK_ROWS of them drawn with `seed`, in their order."""
    if len(rows) <= MAX_BANK_ROWS:
        return np.asarray(rows)
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), MAX_BANK_ROWS, replace=False))]
