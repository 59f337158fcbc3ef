"""The diffusion detectors of Table 1 as a scikit-learn estimator: fit it on normal rows, judge any others."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging import WARNING, LogRecord
from numbers import Real
from typing import Self

import numpy as np
from absl import logging
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from diffad_jax.baselines import trusted
from diffad_jax.data import transforms
from diffad_jax.data.dataset import MIN_TRAIN_ROWS
from diffad_jax.errors import InputError, check_choice
from diffad_jax.methods import METHODS, Scorer
from diffad_jax.metrics import threshold
from diffad_jax.ranges import RANGES
from diffad_jax.reasons import Reasons, reasons, usual_values

# Not dte_ig, which trains longer from 500 rows on: a part of the rows would tell nothing of the whole.
DIFFUSION = ("ours", "dte_np", "ddpm", "dit", "dte_c")
# Of few rows a fifth tells much of the columns, and what was fitted without it is stricter, or laxer, than the whole.
FEW_ROWS, FOLDS_OF_FEW, FOLDS = 1000, 20, 5
SUSPECTED = RANGES["training.suspected"]
DTYPES = [np.float64, np.float32]


class DiffusionDetector(BaseEstimator):
    """Novelty detection on rows [N, D], with the methods and the signs of scikit-learn's outlier detectors.

    method: "ours" (diffusion time in local units, `nearness`: no network), "dte_np", or "ddpm", "dit" and "dte_c",
    which train one; see `methods`. false_alarms: the share of new normals that are called anomalous, in (0, 0.5].
    ordered: whether the rows follow each other in time, as those of a sensor do: neighbours are then alike, and the
    folds are runs of rows, as a row's neighbours in a random fold would make new ones look strange.
    suspected: the share of the rows, in [0, 0.25], that are expected to be no normals: see `baselines.trusted`, and
    `offset_`.
    random_state: of the networks, of the folds, and of which rows are kept where they are many, as scikit-learn takes it.

    A row's score is the higher, the more normal it is, and `predict` calls those below `offset_` anomalous, -1. The offset
    is the `metrics.threshold` of `scores_`, the scores [N] of the training rows, each found by a detector that was fitted on
    the others but for a fifth of all, or a twentieth of up to 1,000 that are not ordered: one that knows a row finds it more
    normal than new ones. The `suspected` N lowest scores do not count. So `fit` fits six detectors, or twenty-one: seconds
    with "ours" and "dte_np", and as many trainings of a network with the others.
    """

    scorer_: Scorer
    usual_: np.ndarray
    scores_: np.ndarray
    offset_: float
    n_features_in_: int

    def __init__(
        self,
        method: str = "ours",
        *,
        false_alarms: float = 0.05,
        ordered: bool = False,
        suspected: float = 0.0,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.method = method
        self.false_alarms = false_alarms
        self.ordered = ordered
        self.suspected = suspected
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fits on normal rows X [N, D], N >= 8; y is not read. Raises InputError, a ValueError, on what is not allowed."""
        check_choice("method", self.method, DIFFUSION)
        if not (isinstance(self.false_alarms, Real) and 0 < self.false_alarms <= 0.5):
            raise InputError(f"false_alarms: found {self.false_alarms!r}, allowed are numbers above 0, up to 0.5")
        if not SUSPECTED.holds(self.suspected):
            raise InputError(f"suspected: found {self.suspected!r}, allowed are {SUSPECTED}")
        rows: np.ndarray = validate_data(self, X, dtype=DTYPES, ensure_min_samples=MIN_TRAIN_ROWS)
        transforms.check_rows(rows, rows.shape[1:])  # whole: what a fold refuses has the fold's numbers
        fit, random = METHODS[self.method], check_random_state(self.random_state)
        seed = random.randint(2**31 - 1)
        suspects = round(self.suspected * len(rows))
        learnt = trusted(rows, suspects, seed)
        few = len(rows) <= FEW_ROWS and not self.ordered  # short runs have their like beside them
        folds = min(FOLDS_OF_FEW, len(rows)) if few else FOLDS
        place = random.permutation(len(rows))
        fold = np.arange(len(rows)) * folds // len(rows) if self.ordered else place % folds
        known = rows[learnt]
        self.scorer_, self.usual_ = fit(known, seed), usual_values(known)
        self.scores_ = np.empty(len(rows))
        with _silence():  # what there was to be warned of has been said of all
            for i in range(folds):
                self.scores_[fold == i] = -fit(rows[learnt & (fold != i)], seed)(rows[fold == i])
        normal = np.sort(self.scores_)[suspects:]
        self.offset_ = -threshold(-normal, 1 - self.false_alarms)
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """[M, D] -> float64 [M], higher = more normal: the anomaly score of the method with its sign turned."""
        check_is_fitted(self)
        return -np.asarray(self.scorer_(validate_data(self, X, dtype=DTYPES, reset=False)), np.float64)

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """`score_samples` less `offset_`: [M, D] -> [M], negative for what `predict` calls anomalous."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """[M, D] -> int [M]: 1 for a normal row, -1 for an anomaly."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def reasons(self, X: ArrayLike) -> Reasons:
        """The columns that make rows strange: [M, D] -> scores [M, D] and values [M, D], by 9 D scores of each row.

        What `score_samples` would tell of a row were one column alone what it is in normals (`reasons`), and the value that
        it would have: the column with the highest score is the most to blame.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=DTYPES, reset=False, ensure_min_samples=0)
        scores, values = reasons(self.scorer_, rows, self.usual_)
        return Reasons(-scores, values)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector"
        return tags


@contextmanager
def _silence() -> Iterator[None]:
    """Without the package's warnings in this thread."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def _is_heard(record: LogRecord) -> bool:
    return record.levelno > WARNING or not _silent.get()


_silent: ContextVar[bool] = ContextVar("_silent", default=False)
logging.get_absl_logger().addFilter(_is_heard)
