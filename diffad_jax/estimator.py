"""The diffusion detectors of Table 1 as a scikit-learn estimator: fit it on normal rows, judge any others."""

from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from diffad_jax.data.dataset import MIN_TRAIN_ROWS
from diffad_jax.errors import InputError, check_choice
from diffad_jax.methods import METHODS, Scorer
from diffad_jax.metrics import threshold

# Not dte_ig, which trains longer from 500 rows on: a part of the rows would tell nothing of the whole.
DIFFUSION = ("ours", "dte_np", "ddpm", "dit", "dte_c")
# Of few rows a fifth tells much of the columns, and what was fitted without it is stricter, or laxer, than the whole.
FEW_ROWS, FOLDS_OF_FEW, FOLDS = 1000, 20, 5
DTYPES = [np.float64, np.float32]


class DiffusionDetector(BaseEstimator):
    """Novelty detection on rows [N, D], with the methods and the signs of scikit-learn's outlier detectors.

    method: "ours" (diffusion time in local units, `nearness`: no network), "dte_np", or "ddpm", "dit" and "dte_c",
    which train one; see `methods`. false_alarms: the share of new normals that are called anomalous, in (0, 0.5].
    ordered: whether the rows follow each other in time, as those of a sensor do: neighbours are then alike, and the
    folds are runs of rows, as a row's neighbours in a random fold would make new ones look strange.
    random_state: of the networks, of the folds, and of which rows are kept where they are many, as scikit-learn takes it.

    A row's score is the higher, the more normal it is, and `predict` calls those below `offset_` anomalous, -1. The offset
    is the `metrics.threshold` of `scores_`, the scores [N] of the training rows, each found by a detector that was fitted on
    the others but for a fifth of all, or a twentieth of up to 1,000 that are not ordered: one that knows a row finds it more
    normal than new ones.
    """

    scorer_: Scorer
    scores_: np.ndarray
    offset_: float
    n_features_in_: int

    def __init__(
        self,
        method: str = "ours",
        *,
        false_alarms: float = 0.05,
        ordered: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.method = method
        self.false_alarms = false_alarms
        self.ordered = ordered
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fits on normal rows X [N, D], N >= 8; y is not read. Raises InputError, a ValueError, on what is not allowed."""
        check_choice("method", self.method, DIFFUSION)
        if not (isinstance(self.false_alarms, Real) and 0 < self.false_alarms <= 0.5):
            raise InputError(f"false_alarms: found {self.false_alarms!r}, allowed are numbers above 0, up to 0.5")
        rows: np.ndarray = validate_data(self, X, dtype=DTYPES, ensure_min_samples=MIN_TRAIN_ROWS)
        fit, random = METHODS[self.method], check_random_state(self.random_state)
        seed = random.randint(2**31 - 1)
        few = len(rows) <= FEW_ROWS and not self.ordered  # short runs have their like beside them
        folds = min(FOLDS_OF_FEW, len(rows)) if few else FOLDS
        place = random.permutation(len(rows))
        fold = np.arange(len(rows)) * folds // len(rows) if self.ordered else place % folds
        self.scores_ = np.empty(len(rows))
        for i in range(folds):
            self.scores_[fold == i] = -fit(rows[fold != i], seed)(rows[fold == i])
        self.offset_ = -threshold(-self.scores_, 1 - self.false_alarms)
        self.scorer_ = fit(rows, seed)
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

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector"
        return tags
