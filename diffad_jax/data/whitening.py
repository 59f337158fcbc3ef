"""Whitening: columns brought to units that can be compared, then PCA by the shrunk covariance of the training normals."""

import numpy as np
from threadpoolctl import threadpool_limits

from diffad_jax.data.dataset import Chosen, Rows, chunks, evenly_spaced
from diffad_jax.data.spread import Spread, as_rows, spread_of
from diffad_jax.errors import InputError

Arrays = dict[str, np.ndarray]

MAX_WIDTH = 8192
WIDE = 4  # columns for each row from which on the rows, rather than the covariance, are decomposed
LIGHT_TAILS = 5.0  # a kurtosis: 3 of a normal distribution, 6 of a Laplace distribution
WIDE_MIDDLE = 0.6  # deviations between the quartiles: 1.35 of a normal distribution, 1.1 of an exponential one
QUARTILE_ROWS = 2048  # of which quartiles are found
MOST_LENT = 3.0  # of its own variance to a column that is measured
FEW_COLUMNS, MOST_APART = 100, 100.0  # embeddings have more columns; in how much smaller a unit one of few is lost
ALIKE = 10.0  # times: within which the quartiles of variances may lie; of embeddings after a ReLU they lie 19 and more apart


def fit(train: Rows, pooling: float = 1.0, shrinkage: float = 0.0) -> Arrays:
    """((x - mean) / s) W: PCA whitening by the shrunk covariance C of the scaled normals, leading components first.

    W = V L^(-1/2) with C = V L V^T (`matrix` is s^-1 W, `deviation` L^(1/2)), so that normals have about unit covariance even
    for N << D. `shrinkage`, or D / N where that is less, is a floor under the intensity rho of OAS: of few columns and many
    rows the covariance is known well.

    The scale s of a column of variance v is s^2 = v + pooling PR median(v), which bends with the participation ratio
    PR = (sum v)^2 / sum v^2, the number of columns that share the variance: where a few columns hold it all, units are
    arbitrary and s nearly standardises; where many share it, as in embeddings, the unit is common and s is nearly constant.
    pooling = 0 standardises. In embeddings the small columns are rare activations; of other data they are not:

    - A column with light tails, a kurtosis below 5, or a wide middle, quartiles 0.6 deviations apart, is rather a measurement
      in a small unit, which the common one would hide: 3 v stands in for the median where it is less.
    - So it does for each of up to 100 columns that varies a hundred times less than the common unit, as a flag or a count of
      rare events does beside amounts of money; a constant one that would if it varied by 1 keeps its own unit.
    - More than 100 columns that all vary about as much, the quartiles of v within a factor of ten, are standardised: a small
      one among them is the mark of this kind of rows, as are the genes that a kind of cells does not read.

    Another constant column has the variance that the shrinkage lends it, the less the more rows agree.

    Source of the shrinkage: Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", eq. 23, in the form of
    scikit-learn's `oas`, which neglects the terms 2/p.
    Raises InputError on pooling below 0, shrinkage outside [0, 1] and more than 8192 columns.
    """
    if (width := int(np.prod(train.shape[1:]))) > MAX_WIDTH:
        raise InputError(f"transform 'whiten': {width} columns, allowed are up to {MAX_WIDTH}")
    if not 0 <= pooling < np.inf:
        raise InputError(f"transform 'whiten': pooling = {pooling}, allowed are numbers from 0")
    if not 0 <= shrinkage <= 1:
        raise InputError(f"transform 'whiten': shrinkage = {shrinkage}, allowed are 0 to 1")
    spread = spread_of(train)
    if not spread.variance.any():
        return {"center": spread.mean, "matrix": np.eye(width), "deviation": np.ones(width)}
    unit = 1 / _scales(spread, pooling)
    values, vectors = _components(spread, unit)
    deviation = np.sqrt(_shrunk(values, len(spread.rows), shrinkage))
    return {"center": spread.mean, "matrix": unit[:, None] * vectors / deviation, "deviation": deviation}


def _scales(spread: Spread, pooling: float) -> np.ndarray:
    """The s of `fit`: [D], 1 of a constant column to which nothing is lent."""
    rows, _, variance, kurtosis = spread
    common = np.median(variance[variance > 0])
    low, high = np.quantile(variance, (0.25, 0.75))
    if len(variance) > FEW_COLUMNS and high < ALIKE * low:
        return np.sqrt(np.where(variance > 0, variance, common))
    some = Chosen(rows, evenly_spaced(len(rows), QUARTILE_ROWS), rows.dtype)
    read = np.concatenate([as_rows(some, start, stop) for start, stop in chunks(some)])
    middle = np.subtract(*np.quantile(read, (0.75, 0.25), axis=0))
    measured = (kurtosis < LIGHT_TAILS) | (variance > 0) & (middle >= WIDE_MIDDLE * np.sqrt(variance))
    if len(variance) <= FEW_COLUMNS:
        measured |= np.where(variance > 0, variance, 1.0) < common / MOST_APART**2
    lent = np.where(measured, np.minimum(common, MOST_LENT * variance), common)
    participation = variance.sum() ** 2 / np.square(variance).sum()
    square = variance + pooling * participation * lent
    return np.sqrt(np.where(square > 0, square, 1.0))


def _components(spread: Spread, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], descending, and eigenvectors [D, D] of the covariance of (x - mean) unit."""
    n, width = len(spread.rows), len(unit)
    scaled = ((as_rows(spread.rows, start, stop) - spread.mean) * unit for start, stop in chunks(spread.rows))
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


def whitened(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    return (rows - arrays["center"]) @ arrays["matrix"]


def unwhitened(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    return np.linalg.solve(arrays["matrix"].T, rows.T).T + arrays["center"]
