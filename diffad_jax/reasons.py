"""Why a row is strange: by how much its score falls where one column alone holds what the column of a normal may hold.

How far each column lies from what is usual does not tell: every value of a row may be usual, and not beside the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffad_jax.data.dataset import Rows, evenly_spaced

LEVELS = (np.arange(9) + 0.5) / 9  # of quantiles
SOME = 2048  # rows, of which quantiles are found
AT_ONCE = 2**22  # values: 32 MiB


class Reasons(NamedTuple):
    """Of rows [M, D]: the least score where that column alone is changed to a usual value, and this value, both [M, D]."""

    scores: np.ndarray
    values: np.ndarray


def usual_values(train: Rows) -> np.ndarray:
    """Quantiles of each column of training rows [N, D], values that stand there: float64 [9, D]; of pictures [0]."""
    if len(train.shape) != 2:
        return np.zeros(0)
    some = np.asarray(train[evenly_spaced(len(train), SOME)], np.float64)
    return np.quantile(some, LEVELS, axis=0, method="nearest")


def reasons(score: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, usual: np.ndarray) -> Reasons:
    """The least of `score` (rows [n, D] -> [n], higher = more anomalous) with one column changed, for each column.

    rows: [M, D], each scored 9 D times. usual: [9, D] of `usual_values`.
    Source: a counterfactual explanation of one feature (Wachter, Mittelstadt & Russell 2017, "Counterfactual explanations
    without opening the black box", section II), by search.
    """
    levels, width = usual.shape
    column, each = np.arange(width), max(1, AT_ONCE // (levels * width * width))
    parts = [Reasons(np.zeros((0, width)), np.zeros((0, width)))]
    for start in range(0, len(rows), each):
        some = rows[start : start + each].astype(np.float64)
        changed = np.tile(some[:, None, None], (1, levels, width, 1))
        changed[:, :, column, column] = usual
        found = score(changed.reshape(-1, width)).reshape(len(some), levels, width)
        parts.append(Reasons(found.min(axis=1), usual[found.argmin(axis=1), column]))
    return Reasons(*(np.concatenate(arrays) for arrays in zip(*parts)))
