"""Each baseline ranks real anomalies, at any scale and with constant columns."""

import sys

import numpy as np
import pytest
from sklearn.covariance import OAS
from sklearn.preprocessing import StandardScaler

from diffad_jax import baselines
from diffad_jax.baselines import BASELINES, fit_score
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.digits import digits
from diffad_jax.errors import InputError
from diffad_jax.metrics import metrics


@pytest.fixture(scope="module")
def zeros() -> Dataset:
    """Zeros against a few other digits: COPOD ranks the test rows too and needs anomalies to be rare."""
    full = digits(normal_class=0)
    keep = (full.labels == 0) | (np.arange(len(full.labels)) % 50 == 0)
    return full._replace(test=full.test[keep], labels=full.labels[keep])


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_separates_digits_with_constant_pixels(name: str, zeros: Dataset) -> None:
    if name == "copod":
        pytest.importorskip("pyod")
    scores = fit_score(name, zeros.train, zeros.test)
    assert scores.shape == zeros.labels.shape and scores.dtype == np.float64
    assert metrics(zeros.labels, scores)["auroc"] > 0.97


@pytest.mark.parametrize("name", sorted(BASELINES.keys() - {"knn_raw"}))
def test_the_unit_of_the_data_is_irrelevant(name: str) -> None:
    if name == "copod":
        pytest.importorskip("pyod")
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(60, 4)), generator.normal(size=(40, 4))
    unit = np.array([1.0, 10.0, 0.01, 1000.0])
    scores = fit_score(name, train, test)
    np.testing.assert_allclose(fit_score(name, train * unit + 3, test * unit + 3), scores, rtol=1e-3)


def test_knn_raw_is_the_distance_in_the_data_s_own_units() -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(60, 4)), generator.normal(size=(40, 4))
    nearest = np.linalg.norm(test[:, None] - train, axis=-1).min(axis=1)
    np.testing.assert_allclose(fit_score("knn_raw", 7 * train, 7 * test), 7 * nearest, rtol=1e-6)
    for bad in (test[:, :3], np.where(test > 2, np.nan, test)):
        with pytest.raises(InputError, match="transform: "):
            fit_score("knn_raw", train, bad)


def test_constant_columns_do_not_change_copod() -> None:
    pytest.importorskip("pyod")
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(50, 4)), generator.normal(size=(30, 4)) + 0.5
    padded = [np.concatenate([x, np.full((len(x), 2), 0.1)], axis=1) for x in (train, test)]
    plain = fit_score("copod", train, test)
    np.testing.assert_array_equal(fit_score("copod", padded[0], padded[1]), plain)
    assert np.ptp(plain) > 0
    assert not fit_score("copod", np.ones((50, 2)), test[:, :2]).any()


def test_copod_without_pyod_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyod.models.copod", None)
    with pytest.raises(InputError, match=r"pip install diffad_jax\[baselines\]"):
        fit_score("copod", np.eye(9), np.eye(9))


def test_mahalanobis_is_that_of_scikit_learn(zeros: Dataset) -> None:
    scaler = StandardScaler().fit(zeros.train.reshape(-1, 64))
    expected = OAS().fit(scaler.transform(zeros.train.reshape(-1, 64)).astype(float))
    test = scaler.transform(zeros.test.reshape(-1, 64)).astype(float)
    np.testing.assert_allclose(fit_score("mahalanobis", zeros.train, zeros.test), expected.mahalanobis(test), rtol=1e-3)


def test_mahalanobis_of_whole_photos_is_refused() -> None:
    with pytest.raises(InputError, match="mahalanobis: found 49152 values a datum, allowed are up to 8192"):
        fit_score("mahalanobis", np.eye(3, 49152), np.eye(3, 49152))


def test_large_training_sets_are_thinned_for_ocsvm(monkeypatch: pytest.MonkeyPatch, zeros: Dataset) -> None:
    full = fit_score("ocsvm", zeros.train, zeros.test)
    monkeypatch.setattr(baselines, "MAX_OCSVM_ROWS", 40)
    fewer = fit_score("ocsvm", zeros.train, zeros.test)
    assert not np.array_equal(fewer, full)
    assert metrics(zeros.labels, fewer)["auroc"] > 0.97


def test_bad_input_is_refused(zeros: Dataset) -> None:
    with pytest.raises(InputError, match="found 'lof'; allowed are iforest, ocsvm, copod, knn, knn_raw, mahalanobis"):
        fit_score("lof", zeros.train, zeros.test)
    with pytest.raises(InputError, match=r"allowed are numbers \[n, 8, 8, 1\]"):
        fit_score("knn", zeros.train, zeros.test[:, 1:])
