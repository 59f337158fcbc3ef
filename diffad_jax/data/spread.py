"""How the columns of rows spread: mean, variance and kurtosis, chunk by chunk, but for the rows that would hold all of it."""

from typing import NamedTuple

import numpy as np
from absl import logging

from diffad_jax.data.dataset import Chosen, Rows, chunks

MOST_OF_ALL = 0.5  # of all deviation that a hundredth of the training rows, or one of them, may hold
FEWEST = 20  # rows: of fewer a usual one may hold that


def as_rows(x: Rows, start: int, stop: int, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """A chunk as rows [n, D] of a precision."""
    return x[start:stop].reshape(stop - start, -1).astype(dtype)


def span(x: Rows) -> tuple[float, float]:
    """The smallest and the largest value; of integers on disk those of their type, since reading them all may take hours."""
    if not isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    ends = [(rows.min(), rows.max()) for rows in (x[start:stop] for start, stop in chunks(x))]
    return min(low for low, _ in ends), max(high for _, high in ends)


class Spread(NamedTuple):
    """Mean, variance and kurtosis of each column of `rows`; a constant one has a variance of 0 and infinite kurtosis."""

    rows: Rows
    mean: np.ndarray
    variance: np.ndarray
    kurtosis: np.ndarray


def spread_of(train: Rows) -> Spread:
    """The spread of the training rows but for the farthest, one or one in a hundred at most, where these hold most of it.

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
    return Spread(rows, mean, variance, kurtosis)


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
