"""Metrics against hand-counted cases, and the bootstrap against a known standard error."""

import numpy as np
import pytest

from diffad_jax.errors import InputError
from diffad_jax.metrics import bootstrap_interval, metrics, threshold


def test_hand_counted_case() -> None:
    labels = [0, 0, 0, 0, 1, 1]
    scores = [0.1, 0.2, 0.7, 0.3, 0.9, 0.5]
    found = metrics(labels, scores)
    # Pairs won: 4 of 4 and 3 of 4. Ranking: anomaly, normal, anomaly, so AP = (1 + 2/3) / 2.
    assert found == pytest.approx({"auroc": 7 / 8, "aupr": 5 / 6, "f1": 0.5, "fpr95": 0.25})
    assert metrics(labels, labels) == {"auroc": 1, "aupr": 1, "f1": 1, "fpr95": 0}


def test_fpr95_counts_normals_above_the_19th_of_20_anomalies() -> None:
    labels = np.repeat([0, 1], [10, 20])
    scores = np.concatenate([np.arange(10), np.arange(20) + 100.0])
    scores[10] = -1  # the anomaly that may be missed
    scores[11] = 6.5  # the last one needed; the normals 7, 8, 9 lie above it
    assert metrics(labels, scores)["fpr95"] == pytest.approx(0.3)


def test_f1_does_not_depend_on_the_order_of_tied_rows() -> None:
    labels, scores = np.array([0, 0, 1, 1, 0]), np.array([1.0, 1.0, 1.0, 2.0, 0.0])
    for order in ([0, 1, 2, 3, 4], [2, 1, 0, 3, 4], [4, 3, 2, 1, 0]):
        assert metrics(labels[order], scores[order])["f1"] == pytest.approx((1 + 1 / 3) / 2)
    constant = metrics([0, 0, 0, 1], [5, 5, 5, 5])
    assert constant == pytest.approx({"auroc": 0.5, "aupr": 0.25, "f1": 0.25, "fpr95": 1})


def test_threshold_is_the_quantile_of_the_normals() -> None:
    assert threshold(np.arange(101)) == 95 and threshold(np.arange(101), 0.5) == 50
    for bad in ([], [1, np.nan]):
        with pytest.raises(InputError, match="normal_scores"):
            threshold(bad)
    with pytest.raises(InputError, match="quantile: found 95"):
        threshold([1, 2], 95)


def test_bootstrap_interval_has_the_width_of_the_theory() -> None:
    generator = np.random.default_rng(0)
    n = 400
    scores = np.concatenate([generator.normal(0, 1, n), generator.normal(1, 1, n)])
    labels = np.repeat([0, 1], n)
    low, high = bootstrap_interval(labels, scores, 0, resamples=4000)
    auroc = metrics(labels, scores)["auroc"]
    # Hanley and McNeil 1982 for equal sample sizes.
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    error = np.sqrt((auroc * (1 - auroc) + (n - 1) * (q1 + q2 - 2 * auroc**2)) / n**2)
    assert low < auroc < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    first, again, other = (bootstrap_interval(labels, scores, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert bootstrap_interval(labels, np.zeros(2 * n), 0) == (0.5, 0.5), "ties count half"


def test_bad_labels_and_scores_are_refused() -> None:
    cases: list[tuple[list[int], list[float], str]] = [
        ([0, 0], [1, 2], "labels: found"),
        ([0, 2], [1, 2], "labels: found"),
        ([0, 1], [1, np.nan], r"scores: 1 of 2 are not finite \(first: row 1\)"),
        ([0, 1, 1], [1, 2], "allowed are two arrays"),
    ]
    for labels, scores, message in cases:
        with pytest.raises(InputError, match=message):
            metrics(labels, scores)
        with pytest.raises(InputError, match=message):
            bootstrap_interval(labels, scores, 0)
