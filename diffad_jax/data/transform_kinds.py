"""The kinds of transforms: what each learns of the training normals, and how it maps raw rows to model range and back."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging
from threadpoolctl import threadpool_limits

from diffad_jax.data.dataset import Chosen, Rows, chunks, evenly_spaced
from diffad_jax.errors import InputError

Arrays = dict[str, np.ndarray]

MAX_WHITEN_WIDTH = 8192
WIDE = 4  # columns for each row from which on the rows, rather than the covariance, are decomposed
LIGHT_TAILS = 5.0  # a kurtosis: 3 of a normal distribution, 6 of a Laplace distribution
WIDE_MIDDLE = 0.6  # deviations between the quartiles: 1.35 of a normal distribution, 1.1 of an exponential one
QUARTILE_ROWS = 2048  # of which quartiles are found
MOST_LENT = 3.0  # of its own variance to a column that is measured
FEW_COLUMNS, MOST_APART = 100, 100.0  # embeddings have more columns; in how much smaller a unit one of few is lost
MOST_OF_ALL = 0.5  # of all deviation that a hundredth of the training rows may hold
FEWEST = 20  # rows: of fewer a usual one may hold that


class Kind(NamedTuple):
    """fit: (train [N, ...], options) -> the arrays that are kept, whose names are `keeps`.

    apply, invert: (arrays, rows [n, D] of float64, of bytes of `of_bytes`) -> rows [n, D] in model range, and raw again; None
    where they cannot be brought back. largest: arrays -> the largest raw value of a range that begins with 0, None where no
    such range is known.
    of_bytes: the precision for uint8: in float32 a range keeps up with what decodes pictures.
    """

    fit: Callable[..., Arrays]
    keeps: tuple[str, ...]
    apply: Callable[[Arrays, np.ndarray], np.ndarray]
    invert: Callable[[Arrays, np.ndarray], np.ndarray] | None
    largest: Callable[[Arrays], float | None] = lambda arrays: None
    of_bytes: type[np.floating] = np.float64


# --- range, standardise: (x - center) * scale ---------------------------------------------------------------------------


def _fit_range(train: Rows, low: float, high: float) -> Arrays:
    """2 (x - low) / (high - low) - 1, so [low, high] -> [-1, 1]; later values are not clipped.

    Raises InputError on training values outside [low, high].
    """
    smallest, largest = span(train)
    if not low < high or smallest < low or largest > high:
        raise InputError(
            f"transform 'range': low = {low}, high = {high}, but training values span "
            f"[{smallest:g}, {largest:g}], which [low, high] must hold"
        )
    # Scalars broadcast over the columns, so a picture's statistics stay two numbers.
    return {"center": np.array((low + high) / 2.0), "scale": np.array(2.0 / (high - low))}


def _fit_standardise(train: Rows) -> Arrays:
    """(x - mean) / std per column, of the rows that `_spread_of` does not leave out; a constant column is divided by 1."""
    _, mean, variance, _ = _spread_of(train)
    return {"center": mean, "scale": 1.0 / np.sqrt(np.where(variance > 0, variance, 1.0))}


def _scaled(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    center, scale = (arrays[name].astype(rows.dtype) for name in ("center", "scale"))
    return (rows - center) * scale


def _unscaled(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    return rows / arrays["scale"] + arrays["center"]


def _largest_of_range(arrays: Arrays) -> float | None:
    half = float(1 / arrays["scale"])
    return 2 * half if float(arrays["center"]) == half else None


# --- contrast: (x - mean(x)) / (2 max(std(x), floor)) -------------------------------------------------------------------


def _fit_contrast(train: Rows) -> Arrays:
    """Mean and deviation of the datum itself: how bright and contrasty a picture was taken counts for nothing.

    The floor, a tenth of the median deviation of the training normals, keeps the noise of an empty picture small.
    Source: the global contrast normalisation of Ruff et al. 2018, "Deep one-class classification", section 4.
    """
    deviations = np.concatenate([as_rows(train, start, stop).std(axis=1) for start, stop in chunks(train)])
    return {"floor": np.array(np.median(deviations) / 10 or 1.0)}


def _contrasted(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / (2 * np.maximum(rows.std(axis=1, keepdims=True), arrays["floor"]))


def _largest_of_contrast(arrays: Arrays) -> float | None:
    # A tenth of the deviation that pictures had, which between 0 and 1 would have no room; 1 where they had none.
    floor = float(arrays["floor"])
    return 255.0 if floor > 0.1 and floor != 1 else None


# --- whiten: (x - center) @ matrix --------------------------------------------------------------------------------------


def _fit_whiten(train: Rows, pooling: float = 1.0, shrinkage: float = 0.0) -> Arrays:
    """((x - mean) / s) W: PCA whitening by the shrunk covariance C of the scaled normals, leading components first.

    W = V L^(-1/2) with C = V L V^T (`matrix` is s^-1 W, `deviation` L^(1/2)), so that normals have about unit covariance even
    for N << D. `shrinkage`, or D / N where that is less, is a floor under the intensity rho of OAS: of few columns and many
    rows the covariance is known well. The scale s_j^2 = v_j + pooling PR median(v) of a column of variance v_j bends with the
    participation ratio PR = (sum v)^2 / sum v^2, the number of columns that share the variance: where a few columns hold it
    all, units are arbitrary and s nearly standardises; where many share it, as in embeddings, the unit is common and s is
    nearly constant. In embeddings the small columns are rare activations; one with light tails, a kurtosis below 5, or a wide
    middle, quartiles 0.6 deviations apart, is rather a measurement in a small unit, which the common one would hide: for such
    a column 3 v_j stands in for the median where it is less. So it does for each of up to 100 columns that varies a hundred
    times less than the common unit, as a flag or a count of rare events does beside amounts of money; a constant one that
    would if it varied by 1 keeps its own unit. pooling = 0 standardises. Another constant column has the variance that the
    shrinkage lends it, the less the more rows agree.

    Source of the shrinkage: Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", eq. 23, in the form of
    scikit-learn's `oas`, which neglects the terms 2/p.
    Raises InputError on pooling below 0, shrinkage outside [0, 1] and more than 8192 columns.
    """
    if (width := int(np.prod(train.shape[1:]))) > MAX_WHITEN_WIDTH:
        raise InputError(f"transform 'whiten': {width} columns, allowed are up to {MAX_WHITEN_WIDTH}")
    if not 0 <= pooling < np.inf:
        raise InputError(f"transform 'whiten': pooling = {pooling}, allowed are numbers from 0")
    if not 0 <= shrinkage <= 1:
        raise InputError(f"transform 'whiten': shrinkage = {shrinkage}, allowed are 0 to 1")
    train, mean, variance, kurtosis = _spread_of(train)
    if not variance.any():
        return {"center": mean, "matrix": np.eye(width), "deviation": np.ones(width)}
    participation = variance.sum() ** 2 / np.square(variance).sum()
    common = np.median(variance[variance > 0])
    some = Chosen(train, evenly_spaced(len(train), QUARTILE_ROWS), train.dtype)
    read = np.concatenate([as_rows(some, start, stop) for start, stop in chunks(some)])
    middle = np.subtract(*np.quantile(read, (0.75, 0.25), axis=0))
    measured = (kurtosis < LIGHT_TAILS) | (variance > 0) & (middle >= WIDE_MIDDLE * np.sqrt(variance))
    if width <= FEW_COLUMNS:
        measured |= np.where(variance > 0, variance, 1.0) < common / MOST_APART**2
    lent = np.where(measured, np.minimum(common, MOST_LENT * variance), common)
    square = variance + pooling * participation * lent
    unit = 1 / np.sqrt(np.where(square > 0, square, 1.0))
    values, vectors = _components(train, mean, unit)
    deviation = np.sqrt(_shrunk(values, len(train), shrinkage))
    return {"center": mean, "matrix": unit[:, None] * vectors / deviation, "deviation": deviation}


def _components(train: Rows, mean: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], descending, and eigenvectors [D, D] of the covariance of (x - mean) unit."""
    n, width = len(train), len(mean)
    scaled = ((as_rows(train, start, stop) - mean) * unit for start, stop in chunks(train))
    # The BLAS threads of a decomposition wait for each other in a busy loop: where another process holds a core, two of them
    # take forty times as long as one.
    if n <= width // WIDE:
        # Of few rows the singular vectors cost N D^2 in place of D^3.
        rows = np.concatenate(list(scaled))
        with threadpool_limits(1, "blas"):
            _, singular, vectors = np.linalg.svd(rows)
        return np.pad(singular**2 / n, (0, width - n)), vectors.T
    covariance = np.zeros((width, width))
    for rows in scaled:
        covariance += rows.T @ rows
    with threadpool_limits(1, "blas"):
        values, vectors = np.linalg.eigh(covariance / n)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _shrunk(values: np.ndarray, n: int, floor: float) -> np.ndarray:
    """The eigenvalues of (1 - rho) S + rho mu I, [p] by those of S, mu their mean.

    rho: the oracle-approximating shrinkage for n rows, at least min(floor, p / n).
    """
    p, mu = len(values), values.mean()
    mean_square = np.square(values).sum() / p**2  # of the entries of S
    excess = (n + 1) * (mean_square - mu**2 / p)
    rho = max(min((mean_square + mu**2) / excess, 1.0) if excess > 0 else 1.0, min(floor, p / n))
    return (1 - rho) * values + rho * mu


def _whitened(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    return (rows - arrays["center"]) @ arrays["matrix"]


def _unwhitened(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    return np.linalg.solve(arrays["matrix"].T, rows.T).T + arrays["center"]


KINDS = {
    "range": Kind(_fit_range, ("center", "scale"), _scaled, _unscaled, _largest_of_range, np.float32),
    "contrast": Kind(_fit_contrast, ("floor",), _contrasted, None, _largest_of_contrast),
    "standardise": Kind(_fit_standardise, ("center", "scale"), _scaled, _unscaled),
    "whiten": Kind(_fit_whiten, ("center", "matrix", "deviation"), _whitened, _unwhitened),
}


# --- rows in chunks -----------------------------------------------------------------------------------------------------


def as_rows(x: Rows, start: int, stop: int, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """A chunk as rows [n, D] of a precision."""
    return x[start:stop].reshape(stop - start, -1).astype(dtype)


def span(x: Rows) -> tuple[float, float]:
    """The smallest and the largest value; of integers on disk those of their type, since reading them all may take hours."""
    if not isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    ends = [(rows.min(), rows.max()) for rows in (x[start:stop] for start, stop in chunks(x))]
    return min(low for low, _ in ends), max(high for _, high in ends)


class _Spread(NamedTuple):
    """Mean, variance and kurtosis of each column of `rows`; a constant one has a variance of 0 and infinite kurtosis."""

    rows: Rows
    mean: np.ndarray
    variance: np.ndarray
    kurtosis: np.ndarray


def _spread_of(train: Rows) -> _Spread:
    """The spread of the training rows but for the farthest, one in a hundred at most, where these hold most of it.

    A few records of -999 in every column, as of a sensor that was off, would else make all others look alike: the whole of
    the columns' deviation would be theirs. Says what it leaves out.
    """
    rows, (mean, variance) = train, _moments(train)
    share, kurtosis = _shares(rows, mean, variance)
    far = np.argsort(share)[::-1][: max(1, len(train) // 100)]
    if len(train) >= FEWEST and share[far].sum() > MOST_OF_ALL:
        off = far[share[far] > share.max() / 100]
        logging.warning(
            "%d of %d training rows lie so far off that they hold %.0f %% of all deviation: left out of mean and deviation "
            "(first: row %d)",
            len(off),
            len(train),
            100 * share[off].sum(),
            off.min(),
        )
        rows = Chosen(train, np.delete(np.arange(len(train)), off), train.dtype)
        mean, variance = _moments(rows)
        _, kurtosis = _shares(rows, mean, variance)
    return _Spread(rows, mean, variance, kurtosis)


def _shares(x: Rows, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows [N, D]: the share [N] of each in the variance, the mean over columns that have some, and the kurtosis [D]."""
    varied = variance > 0
    share, fourth = np.zeros(len(x)), np.zeros(len(mean))
    for start, stop in chunks(x):
        square = np.square(as_rows(x, start, stop) - mean) / np.where(varied, variance, 1.0)
        share[start:stop] = square @ varied / max(1, varied.sum()) / len(x)
        fourth += np.square(square).sum(axis=0)
    return share, np.where(varied, fourth / len(x), np.inf)


def _moments(x: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each column, chunk by chunk in float64; exactly 0 for a constant column."""
    width = int(np.prod(x.shape[1:]))
    mean, variance = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for start, stop in chunks(x):
        rows = as_rows(x, start, stop)
        mean += rows.sum(axis=0)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    mean /= len(x)
    for start, stop in chunks(x):
        variance += np.square(as_rows(x, start, stop) - mean).sum(axis=0)
    variance /= len(x)
    # By equality, since the rounding of the mean leaves a constant column a spread just above 0.
    variance[low == high] = 0.0
    return mean, variance
