"""Classical detectors behind one signature, each with its library's default settings."""

from collections.abc import Callable, Iterable
from importlib import import_module

import numpy as np
from sklearn.covariance import OAS
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from diffad_jax.data import transforms
from diffad_jax.data.dataset import Rows, evenly_spaced
from diffad_jax.errors import InputError, check_choice

# Rows that are left out for each that is expected to be no normal (docs/results.md), and the trees that choose them: a
# hundred, the library's number, choose others with every seed.
LEFT_OUT, TREES = 2, 300
MAX_OCSVM_ROWS = 10_000
MAX_MAHALANOBIS_WIDTH = 8192


def fit_score(name: str, train: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fit the baseline `name` on normals [N, ...] and score test rows [M, ...]: float64 [M], higher = more anomalous.

    Data are flattened to vectors and standardised with the mean and std of `train`, but for `knn_raw`; a few ruinous rows
    that hold most of all deviation are left out of these, as for our own methods (`data/spread.py`). Names: see BASELINES.
    Raises InputError on an unknown name, on data that are not finite or differ in shape, and for copod without PyOD.
    """
    check_choice("baseline", name, BASELINES)
    if name != "knn_raw":
        standardise = transforms.fit("standardise", train)
        train, test = standardise.apply(train), standardise.apply(test)
    else:
        transforms.check_rows(train, train.shape[1:])
        transforms.check_rows(test, train.shape[1:])
    rows, test_rows = (x.reshape(len(x), -1) for x in (train, test))
    return np.asarray(BASELINES[name](rows, test_rows, seed), np.float64)


def iforest(train: np.ndarray, test: np.ndarray, seed: int, trees: int = 100) -> np.ndarray:
    """Isolation forest (Liu et al. 2008)."""
    return -IsolationForest(n_estimators=trees, random_state=seed).fit(train).score_samples(test)


def ocsvm(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """One-class SVM with an RBF kernel (Schölkopf et al. 2001).

    Its cost is quadratic: of more than 10,000 training rows so many, evenly spaced, are used.
    """
    return -OneClassSVM().fit(train[evenly_spaced(len(train), MAX_OCSVM_ROWS)]).score_samples(test)


def copod(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Copula-based outlier detection (Li et al. 2020), PyOD's implementation; deterministic.

    Columns that are constant in `train` tell nothing and are dropped: their skewness is NaN, which PyOD would spread
    over all scores. PyOD ranks test rows together with the training rows, so a score depends on the other test rows and
    the ranking fails where anomalies are the majority of all rows.
    """
    check_installed(["copod"])
    from pyod.models.copod import COPOD

    varying = train.min(axis=0) < train.max(axis=0)
    if not varying.any():
        return np.zeros(len(test))
    # float64, since the skewness of a nearly constant column loses all its digits in float32.
    detector = COPOD().fit(train[:, varying].astype(np.float64))
    return detector.decision_function(test[:, varying].astype(np.float64))


def knn(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Euclidean distance to the nearest training row; memory stays bounded at any size."""
    return NearestNeighbors(n_neighbors=1).fit(train).kneighbors(test)[0][:, 0]


def mahalanobis(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Squared Mahalanobis distance to the training mean under the OAS-shrunk covariance (Chen et al. 2010).

    Raises InputError as `check_width` does.
    """
    check_width(["mahalanobis"], train.shape[1])
    return OAS().fit(train.astype(np.float64)).mahalanobis(test.astype(np.float64))


def trusted(rows: Rows, suspects: int, seed: int) -> np.ndarray:
    """Which rows [N, D] are left when twice as many as there are suspects, isolated first by a forest, are gone: bool [N].

    Distances from the nearest cannot tell anomalies that have their like among the rows; a tree of an isolation forest
    sees 256 rows, and few of these (Liu et al. 2008, section 3, on swamping and masking).
    """
    learnt = np.ones(len(rows), bool)
    if suspects:
        scaled = transforms.fit("standardise", rows).apply(rows)  # trees take what varies by 1e-7 for constant
        isolated = np.argsort(iforest(scaled, scaled, seed, TREES), kind="stable")
        learnt[isolated[-LEFT_OUT * suspects :]] = False
    return learnt


def check_width(names: Iterable[str], width: int) -> None:
    """Raises InputError where one of the baselines would hold a matrix of width x width that memory may not."""
    if "mahalanobis" in names and width > MAX_MAHALANOBIS_WIDTH:
        raise InputError(f"mahalanobis: found {width} values a datum, allowed are up to {MAX_MAHALANOBIS_WIDTH}")


def check_installed(names: Iterable[str]) -> None:
    """Raises InputError where one of the baselines needs a package that is not there."""
    try:
        if "copod" in names:
            import_module("pyod.models.copod")
    except ImportError as error:
        raise InputError("copod: PyOD is not installed: pip install diffad_jax[baselines]") from error


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "iforest": iforest,
    "ocsvm": ocsvm,
    "copod": copod,
    "knn": knn,
    # Pixels share a unit: on pictures the plain distance is sometimes far better, sometimes far worse.
    "knn_raw": knn,
    "mahalanobis": mahalanobis,
}
