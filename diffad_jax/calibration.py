"""From error maps to one number a datum: what the normals show of each level decides what it counts.

Levels [L, B] are the means over pixels of the maps [L, B, ...] of a `scores.Score`. A calibration is fitted on the levels
of normals and joins those of any datum, and its distance from the nearest normals, to one score [B], higher = more anomalous.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.errors import InputError, RunFailed
from diffad_jax.nearness import NOT_ASKED, Near
from diffad_jax.process import expand

TINY = 1e-12
FOLDS = 10  # parts of the normals, each of which is judged by what was fitted on the others
MIN_HELD_OUT = 4  # normals; of fewer none is held out
FILL = 512  # normals: more are filled up to a multiple, so that runs share compiled programs


def per_datum(maps: Array) -> Array:
    """The mean over pixels: [L, B, ...] -> [L, B]."""
    return maps.reshape(*maps.shape[:2], -1).mean(axis=-1)


class Calibration(NamedTuple):
    """How the levels of normals are distributed.

    mean, scale: [L], mean and standard deviation of each level. log_mean [L], log_precision [L, L]: mean of the logarithms
    of the levels and inverse of their covariance, shrunk by OAS (Chen et al. 2010, eq. 23, without its terms in 2 / L, as
    scikit-learn has it) on the scale of the correlations.
    log_typicality: [2], mean and standard deviation of the logarithms of `typicality`, each normal's found without it; 0 and
    1 where no distance is asked for.
    near: what `nearness.distances` knows of the normals, an empty bank where no distance is asked for.
    """

    mean: Array
    scale: Array
    log_mean: Array
    log_precision: Array
    log_typicality: Array
    near: Near

    def heat_of_usual_error(self) -> float:
        """How much brighter a heat map is, the mean of standardised levels, where errors grow by the normals' mean error."""
        return float((self.mean / self.scale).mean())


def calibrate(levels: np.ndarray, near: Near = NOT_ASKED) -> Calibration:
    """Fits the calibration on the levels of normals [L, N], N >= 2. A level without spread is divided by 1.

    near: of `nearness.remember`, kept in the calibration; with one `log_typicality` is fitted too, for `fisher`.
    Raises RunFailed on levels that are not finite, and InputError on one normal.
    """
    levels = np.asarray(levels, np.float64)
    if levels.shape[1] < 2:
        raise InputError(f"config.scoring: a calibration needs 2 normals or more, found {levels.shape[1]}")
    if not np.isfinite(levels).all():
        raise RunFailed(
            "the score of training normals is not finite: its levels hold "
            f"{np.count_nonzero(~np.isfinite(levels))} values of {levels.size} that are no numbers"
        )
    fitted = _fit(levels)
    if not len(near.bank):
        return fitted
    logs = np.log(np.maximum(_held_out(levels, typicality), TINY))
    return fitted._replace(log_typicality=jnp.asarray([logs.mean(), spread(logs)], jnp.float32), near=near)


def scores_of_normals(
    calibration: Calibration, levels: np.ndarray, combination: str, distances: np.ndarray | None
) -> np.ndarray:
    """What the normals [L, N] that a calibration was fitted on would score, had it not seen them: [N].

    distances: [N], of each from the nearest others (`nearness.remember`), or None where they are not asked for.
    Among themselves they look more typical than new normals do, the more so the more levels there are. One level that is only
    moved and stretched keeps its order, and calibrations that each do so differently would spoil that.
    """
    if COMBINATIONS[combination].errors_alone and len(levels) == 1:
        return np.asarray(standardised_mean(calibration, jnp.asarray(levels, jnp.float32)), np.float64)
    known = np.zeros(levels.shape[1]) if distances is None else distances

    def score(others: Calibration, levels: Array) -> Array:
        filled = jnp.asarray(np.resize(known, levels.shape[1]), jnp.float32)
        return COMBINATIONS[combination].join(
            others._replace(log_typicality=calibration.log_typicality), levels, filled
        )

    return _held_out(np.asarray(levels, np.float64), score)


def _held_out(levels: np.ndarray, test: Callable[[Calibration, Array], Array]) -> np.ndarray:
    """test(calibration, levels [L, N]) -> [..., N], each tenth of the normals by a calibration on the others.

    Of fewer than MIN_HELD_OUT normals all are tested by one on all.
    """
    count = levels.shape[1]
    # All are tested each time, and filled up to one of few shapes, for each of which JAX compiles anew.
    filled = jnp.asarray(levels[:, np.arange(-(-count // FILL) * FILL) % count], jnp.float32)

    def tested(fitted_on: np.ndarray) -> np.ndarray:
        return np.asarray(test(_fit(fitted_on), filled), np.float64)[..., :count]

    if count < MIN_HELD_OUT:
        return tested(levels)
    folds = min(FOLDS, count)
    place = np.arange(count) % folds
    found = np.stack([tested(levels[:, place != i]) for i in range(folds)])
    return np.moveaxis(found, 0, -1)[..., np.arange(count), place]


def _fit(levels: np.ndarray) -> Calibration:
    """A calibration without what is asked of distances."""
    logs = np.log(np.maximum(levels, TINY)).T
    unit = spread(logs)
    from sklearn.covariance import oas  # here: the import takes longer than the fit

    covariance, _ = oas((logs - logs.mean(axis=0)) / unit, assume_centered=True)
    # OAS leaves levels at 0 where none has any spread.
    covariance[np.diag_indices(len(unit))] += covariance.diagonal() == 0
    precision = np.linalg.pinv(covariance, hermitian=True) / np.outer(unit, unit)
    single = partial(jnp.asarray, dtype=jnp.float32)
    return Calibration(
        mean=single(levels.mean(axis=1)),
        scale=single(spread(levels.T)),
        log_mean=single(logs.mean(axis=0)),
        log_precision=single(precision),
        log_typicality=single([0, 1]),
        near=NOT_ASKED,
    )


def spread(rows: np.ndarray) -> np.ndarray:
    """Standard deviations over rows [N, ...] -> [...], 1 where all are equal: rounding gives equal numbers a deviation."""
    return np.where(rows.min(axis=0) < rows.max(axis=0), rows.std(axis=0), 1.0)


def standardised_mean(calibration: Calibration, levels: Array) -> Array:
    """The mean over levels of (levels - mean) / scale: [L, B, ...] -> [B, ...], also of whole maps.

    The mean over pixels of the joined maps is the joined score of the datum.
    """
    mean, scale = expand(calibration.mean, levels), expand(calibration.scale, levels)
    return ((levels - mean) / scale).mean(axis=0)


def typicality(calibration: Calibration, levels: Array) -> Array:
    """The squared Mahalanobis distance over L of log(levels) from those of the normals: [L, B] -> [B].

    Anomalies may be too easy to denoise as well as too hard (a picture blurred or empty), or have errors that are usual at
    each level but not together; a sum of errors is blind to both. Expected value about 1 for normals, less where a level is
    constant or follows from others.
    Source: the typical set of Nalisnick et al. 2019 ("Detecting out-of-distribution inputs to deep generative models using
    typicality"), read off statistics of the denoiser as in Heng et al. 2024 ("Out-of-distribution detection with a single
    unconditional diffusion model"), here the spectrum of its errors.
    """
    deviation = jnp.log(jnp.maximum(levels, TINY)) - calibration.log_mean[:, None]
    precision = calibration.log_precision
    # "highest": accelerators otherwise round the factors of a product.
    return jnp.einsum("lb,lk,kb->b", deviation, precision, deviation, precision="highest") / len(levels)


def fisher(calibration: Calibration, levels: Array, distances: Array) -> Array:
    """-log p_1 - log p_2, the p-values of two tests for "this is a normal": is it typical, and is it near one? [B].

    p = 1 - Phi(z), with z the standardised logarithm of `typicality`, or that of the distance from the nearest normals, which
    `nearness.distances` [B] are. Both are p-values but roughly: of few levels the logarithm of typicality is skewed to the
    left (of three, p < 0.05 for 1.7 % of Gaussian normals, of five for 2.6 %), and of several views the largest distance
    counts. What no normal could be shows in the first, wherever it lies. In the second shows what every single error allows
    but no normal looks like, above all among normals of many kinds, where every spectrum of errors is typical.
    Source: the combination of p-values of Fisher 1932 ("Statistical methods for research workers", section 21.1), whose
    statistic is twice this.
    """
    mean, scale = calibration.log_typicality
    untypical = (jnp.log(jnp.maximum(typicality(calibration, levels), TINY)) - mean) / scale
    return -jax.scipy.stats.norm.logsf(jnp.stack([untypical, distances])).sum(axis=0)


class Combination(NamedTuple):
    """join: (calibration, levels [L, B], distances [B] of `nearness`) -> scores [B].

    logarithmic: whether it takes logarithms of the levels, none of which may then be negative. near: whether it asks for the
    distances, for which a run keeps its normals. network: whether it asks for the levels. errors_alone: whether it is these
    alone, as their mean.
    """

    join: Callable[[Calibration, Array, Array], Array]
    logarithmic: bool = False
    near: bool = False
    network: bool = True
    errors_alone: bool = False


COMBINATIONS = {
    "standardised_mean": Combination(
        lambda calibration, levels, distances: standardised_mean(calibration, levels), errors_alone=True
    ),
    "typicality": Combination(lambda calibration, levels, distances: typicality(calibration, levels), logarithmic=True),
    "fisher": Combination(fisher, logarithmic=True, near=True),
    "nearest": Combination(lambda calibration, levels, distances: distances, near=True, network=False),
}
