"""Why a row is strange: by how much its score falls where one column alone holds what the column of a normal may hold.

How far each column lies from what is usual does not tell: every value of a row may be usual, and not beside the others.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np

from diffad_jax.data.dataset import Rows, evenly_spaced

LEVELS = (np.arange(9) + 0.5) / 9  # of quantiles
QUANTILE_ROWS = 2048  # of which quantiles are found
VALUES_AT_ONCE = 2**22  # 32 MiB


class Reasons(NamedTuple):
    """Of rows [M, D]: the most normal score where that column alone is changed to a usual value, and this value, both [M, D].

    The most normal is the least anomaly score, and of `estimator.DiffusionDetector`, whose scores have the other sign, the
    highest. The column of the most normal score is the most to blame.
    """

    scores: np.ndarray
    values: np.ndarray


def usual_values(train: Rows) -> np.ndarray:
    """Quantiles of each column of training rows [N, D], values that stand there: float64 [9, D]; of pictures [0]."""
    if len(train.shape) != 2:
        return np.zeros(0)
    some = np.asarray(train[evenly_spaced(len(train), QUANTILE_ROWS)], np.float64)
    return np.quantile(some, LEVELS, axis=0, method="nearest")


def reasons(score: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, usual: np.ndarray) -> Reasons:
    """The least of `score` (rows [n, D] -> [n], higher = more anomalous) with one column changed, for each column.

    rows: [M, D], each scored 9 D times. usual: [9, D] of `usual_values`.
    Source: a counterfactual explanation of one feature (Wachter, Mittelstadt & Russell 2017, "Counterfactual explanations
    without opening the black box", section II), by search.
    """
    levels, width = usual.shape
    at_once = max(1, min(width, VALUES_AT_ONCE // (levels * width)))  # columns
    each = max(1, VALUES_AT_ONCE // (levels * at_once * width))  # rows
    scores, values = np.empty(rows.shape), np.empty(rows.shape)
    for start, first in product(range(0, len(rows), each), range(0, width, at_once)):
        some, column = slice(start, start + each), np.arange(first, min(first + at_once, width))
        changed = np.tile(rows[some, None, None].astype(np.float64), (1, levels, len(column), 1))
        changed[:, :, np.arange(len(column)), column] = usual[:, column]
        found = score(changed.reshape(-1, width)).reshape(-1, levels, len(column))
        scores[some, column] = found.min(axis=1)
        values[some, column] = usual[found.argmin(axis=1), column]
    return Reasons(scores, values)
