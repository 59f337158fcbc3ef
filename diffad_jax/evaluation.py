"""Scoring of whole data sets with a trained model: batches, padding, calibration and threshold."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.assembly import System
from diffad_jax.metrics import threshold
from diffad_jax.scores import Calibration, calibrate, combine, per_datum
from diffad_jax.sharding import data_mesh, replicate, split
from diffad_jax.training import Params


def make_levels(system: System, params: Params, seed: int, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from transformed data [N, ...] to the scores of each level, [L, N]. See `in_batches` for the batching."""
    compiled = jax.jit(lambda p, x, key: per_datum(system.score.maps(system.denoise(p), x, key)))
    mesh = data_mesh(batch_size)
    params, key = replicate((params, jax.random.key(seed)), mesh)
    return partial(in_batches, lambda x: compiled(params, split(x, mesh), key), batch_size=batch_size)


def in_batches(function: Callable[[np.ndarray], Array], x: np.ndarray, batch_size: int) -> np.ndarray:
    """function over batches of x [N, ...]; its results [L, B] are joined to [L, N].

    The last batch is filled up with copies of its first row, which are cut off again: one shape, one compilation.
    """
    results = []
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        filler = np.repeat(batch[:1], batch_size - len(batch), axis=0)
        # Fetching waits for the device; the results of this batch are fetched after the next one has been sent.
        results.append((function(np.concatenate([batch, filler])), len(batch)))
    return np.concatenate([np.asarray(result)[:, :count] for result, count in results], axis=1)


def fit_calibration(levels: np.ndarray, quantile: float = 0.95) -> tuple[Calibration, float]:
    """Calibration, and the threshold on the combined score, from the level scores [L, N] of training normals."""
    calibration = calibrate(jnp.asarray(levels))
    return calibration, threshold(np.asarray(combine(calibration, jnp.asarray(levels))), quantile)
