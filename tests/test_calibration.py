import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from diffad_jax import evaluation
from diffad_jax.calibration import (
    COMBINATIONS,
    NOT_ASKED,
    Near,
    calibrate,
    fisher,
    per_datum,
    standardised_mean,
    typicality,
)
from diffad_jax.evaluation import fit_calibration


def test_standardised_levels_are_joined() -> None:
    rng = np.random.default_rng(0)
    normal = np.stack([rng.normal(5, 2, 200), rng.normal(-1, 0.01, 200), np.full(200, 3.0)]).astype(np.float32)
    calibration = calibrate(normal)
    standardised = (normal - normal.mean(axis=1, keepdims=True)) / np.array([[normal[0].std()], [normal[1].std()], [1]])
    assert_allclose(standardised_mean(calibration, jnp.asarray(normal)), standardised.mean(axis=0), atol=1e-3)
    # The mean over pixels of the joined map is the joined score.
    pictures = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    levels = per_datum(jnp.asarray(pictures))
    assert_allclose(levels, pictures.mean(axis=(2, 3)), rtol=1e-5, atol=1e-7)
    joined = np.asarray(standardised_mean(calibration, jnp.asarray(pictures)))
    assert_allclose(joined.mean(axis=(1, 2)), standardised_mean(calibration, levels), rtol=1e-3)


ASKED: Near = NOT_ASKED._replace(bank=np.zeros((1, 1)))  # type: ignore[arg-type]


def lognormal(count: int, seed: int) -> np.ndarray:
    """Levels [3, count] whose logarithms are Gaussian, the first two nearly equal."""
    z = np.random.default_rng(seed).normal(size=(3, count))
    z[1] = z[0] + 0.1 * z[1]
    return np.exp(z * np.array([[2.0], [2.0], [0.1]]) + np.array([[-3.0], [1.0], [0.0]])).astype(np.float32)


def test_typicality_is_the_mahalanobis_distance_of_the_logarithms() -> None:
    normal, other = lognormal(20000, 0), lognormal(1000, 1)
    covariance = np.cov(np.log(normal))
    deviation = np.log(other) - np.log(normal).mean(axis=1, keepdims=True)
    expected = np.einsum("lb,lk,kb->b", deviation, np.linalg.inv(covariance), deviation) / 3
    found = np.asarray(typicality(calibrate(normal), jnp.asarray(other)))
    assert_allclose(found, expected, rtol=0.1)
    assert_allclose(found.mean(), 1, atol=0.1)
    # The unit of a level is nobody's business.
    units = np.array([[1e-4], [1.0], [1e3]], np.float32)
    assert_allclose(typicality(calibrate(normal * units), jnp.asarray(other * units)), found, rtol=1e-2)


def test_typicality_sees_errors_that_are_too_small_or_do_not_fit_together() -> None:
    normal, test = lognormal(500, 0), lognormal(500, 1)
    calibration = calibrate(normal)
    too_small, unfit = test.copy(), test.copy()
    too_small[2] *= np.exp(-0.5)
    unfit[1] = test[1, ::-1]
    labels = np.repeat([0, 1], 500)
    for anomalous in (too_small, unfit):
        rows, distances = jnp.asarray(np.concatenate([test, anomalous], axis=1)), jnp.ones(1000)
        aurocs = {
            name: roc_auc_score(labels, one.join(calibration, rows, distances)) for name, one in COMBINATIONS.items()
        }
        assert aurocs["typicality"] > 0.9
        assert aurocs["standardised_mean"] < 0.6


def test_fisher_adds_the_logarithms_of_two_tail_probabilities() -> None:
    normal, other = lognormal(500, 0), lognormal(50, 1)
    distances, calibration = np.random.default_rng(3).normal(size=50), calibrate(normal, ASKED)
    logs, new = (np.log(np.asarray(typicality(calibration, jnp.asarray(x)), np.float64)) for x in (normal, other))
    expected = -norm.logsf((new - logs.mean()) / logs.std()) - norm.logsf(distances)
    # Up to what 500 normals do not know of 3 levels.
    found = fisher(calibration, jnp.asarray(other), jnp.asarray(distances, jnp.float32))
    assert_allclose(found, expected, rtol=0.03, atol=0.01)
    farther = np.asarray(fisher(calibration, jnp.asarray(other * np.float32(1e12)), jnp.full(50, 1e4)))
    assert np.isfinite(farther).all() and farther.min() > 100, "far beyond what a probability can hold"


def test_a_test_of_normals_is_that_of_a_calibration_without_them() -> None:
    """Of many levels a calibration knows its own normals by heart, and new ones would all be far from what it expects."""
    mixing = np.random.default_rng(0).normal(size=(60, 60)) / 8
    normal, new = (np.exp(mixing @ np.random.default_rng(i).normal(size=(60, n))) for i, n in ((1, 100), (2, 2000)))
    calibration = calibrate(normal, ASKED)
    own, others = (
        np.log(np.asarray(typicality(calibration, jnp.asarray(x, jnp.float32)))).mean() for x in (normal, new)
    )
    expected = float(calibration.log_typicality[0])
    assert abs(expected - others) < 0.3 * abs(expected - own)


@pytest.mark.parametrize(("count", "asked"), [(4, 0.2), (13, 1 / 14), (36, 0.05)])
def test_of_one_level_as_many_new_normals_pass_as_promised(count: int, asked: float) -> None:
    """Also of few normals: without one of them a deviation is smaller, and its score by the others too large."""
    passed = []
    for seed in range(200):
        draw = np.random.default_rng(seed).gamma(3.0, size=(1, count + 500))
        calibration, threshold, _ = fit_calibration(draw[:, :count], "standardised_mean")
        new = np.asarray(standardised_mean(calibration, jnp.asarray(draw[:, count:], jnp.float32)))
        passed.append(np.mean(new > threshold))
    # Of each draw the share has a deviation of about its mean; of the mean of 200 a fourteenth.
    assert np.mean(passed) == pytest.approx(asked, rel=0.2)


def test_the_usual_error_is_the_mean_over_levels() -> None:
    levels = np.stack([np.array([1.0, 3.0]), np.array([10.0, 30.0])])
    calibration = calibrate(levels)
    assert_allclose(calibration.mean / calibration.scale, [2, 2])
    calibration = calibration._replace(mean=calibration.mean * np.array([1.0, 3.0]))
    assert calibration.heat_of_usual_error() == pytest.approx(4)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_larger_errors_and_distances_score_higher(combination: str) -> None:
    normal, distances = lognormal(200, 0), np.random.default_rng(3).normal(size=200)
    calibration = calibrate(normal, ASKED)
    scores = [
        np.asarray(COMBINATIONS[combination].join(calibration, jnp.asarray(normal * k), jnp.asarray(distances + k)))
        for k in (1.0, 10.0, 100.0)
    ]
    assert (scores[0] < scores[1]).mean() > 0.95 and (scores[1] < scores[2]).all()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_new_normals_pass_the_threshold_as_often_as_it_says(combination: str) -> None:
    """60 levels, of which 100 normals tell little: judged by a calibration that knows them, nearly all look alike."""
    mixing = np.random.default_rng(0).normal(size=(60, 60)) / 8
    normal, new = (np.exp(mixing @ np.random.default_rng(i).normal(size=(60, n))) for i, n in ((1, 100), (2, 2000)))
    distances, new_distances = (np.random.default_rng(i).normal(size=n) for i, n in ((3, 100), (4, 2000)))
    calibration, threshold, scores = fit_calibration(normal, combination, ASKED, distances)
    new_levels = jnp.asarray(new, jnp.float32), jnp.asarray(new_distances, jnp.float32)
    passed = np.asarray(COMBINATIONS[combination].join(calibration, *new_levels)) > threshold
    assert 0.005 < passed.mean() < 0.12
    assert (np.diff(scores) >= 0).all() and (scores > threshold).mean() == pytest.approx(0.05)


@pytest.mark.parametrize(
    "levels", [np.full((2, 5), 3.0), np.zeros((1, 4)), np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 4.0]])]
)
@pytest.mark.parametrize("distance", [-27.6, 2.0])
def test_levels_and_distances_without_spread_stay_finite(levels: np.ndarray, distance: float) -> None:
    distances = np.full(levels.shape[1], distance)
    calibration = calibrate(levels, ASKED)
    for combine, *_ in COMBINATIONS.values():
        assert np.isfinite(
            np.asarray(combine(calibration, jnp.asarray(levels, jnp.float32), jnp.asarray(distances)))
        ).all()


def test_what_differs_from_levels_without_spread_is_not_typical() -> None:
    calibration = calibrate(np.full((2, 5), 3.0), ASKED)
    same, other = typicality(calibration, jnp.array([[3.0, 5.0], [3.0, 3.0]]))
    assert same < 1e-9 < 0.1 < other


def test_what_is_no_number_scores_highest() -> None:
    judge = calibrate(np.random.default_rng(0).gamma(2, size=(2, 20)))
    found = evaluation.reading(judge, "typicality", jnp.zeros((3, 4)), jnp.full((2, 3, 2, 2), jnp.nan))
    for told in found:
        np.testing.assert_allclose(told, evaluation.HIGHEST)
    judge = calibrate(np.full((1, 20), 0.5) + np.linspace(0, 0.01, 20))
    far = jnp.array([[0.5, 1e29, jnp.inf]])
    assert np.argsort(evaluation.reading(judge, "standardised_mean", jnp.zeros((3, 4)), far).scores).tolist() == [
        0,
        1,
        2,
    ]
    # As a heat map is smoothed.
    assert np.isfinite(gaussian_filter(np.asarray(found.maps), 1.5, axes=(1, 2))).all()
