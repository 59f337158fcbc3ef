"""Metrics against hand-counted cases, and the bootstrap against a known standard error."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve  # type: ignore[import-untyped]

from diffad_jax.errors import InputError
from diffad_jax.metrics import above_threshold, auroc_by_group, bootstrap_intervals, metrics, threshold


def test_hand_counted_case() -> None:
    labels = [0, 0, 0, 0, 1, 1]
    scores = [0.1, 0.2, 0.7, 0.3, 0.9, 0.5]
    found = metrics(labels, scores)
    # Pairs won: 4 of 4 and 3 of 4. Ranking: anomaly, normal, anomaly, so AP = (1 + 2/3) / 2.
    assert found == pytest.approx({"auroc": 7 / 8, "aupr": 5 / 6, "f1": 0.5, "fpr95": 0.25})
    assert metrics(labels, labels) == {"auroc": 1, "aupr": 1, "f1": 1, "fpr95": 0}


@pytest.mark.parametrize("levels", [2, 8, 1000])
def test_ties_are_counted_as_scikit_learn_counts_them(levels: int) -> None:
    generator = np.random.default_rng(levels)
    for size in range(3, 60):
        labels, scores = generator.permutation(np.arange(size) % 3 == 0), generator.integers(-levels, levels, size)
        false, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
        found = metrics(labels.astype(int), scores)
        assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert found["aupr"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert found["fpr95"] == false[np.argmax(recall >= 0.95)]


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


@pytest.mark.parametrize(("count", "expected"), [(20, 0.05), (500, 0.05), (4, 0.2)])
def test_as_many_new_normals_as_asked_lie_above_the_threshold(count: int, expected: float) -> None:
    normals = np.random.default_rng(0).uniform(size=(4000, count))
    above = 1 - np.array([threshold(scores) for scores in normals])
    assert above.mean() == pytest.approx(expected, abs=4 * above.std() / 4000**0.5)


def test_threshold_is_the_quantile_of_the_normals() -> None:
    assert threshold(np.arange(99)) == 94 and threshold(np.arange(101), 0.5) == 50
    for bad in ([], [1, np.nan]):
        with pytest.raises(InputError, match="normal_scores"):
            threshold(bad)
    with pytest.raises(InputError, match="quantile: found 95"):
        threshold([1, 2], 95)


def test_what_lies_above_the_threshold_is_told_of_each_kind() -> None:
    found = above_threshold([0, 0, 0, 0, 1, 1], [0.1, 0.5, 0.6, 0.2, 0.9, 0.5], 0.5)
    assert found == {"normals_above_threshold": 0.25, "anomalies_above_threshold": 0.5}


def test_bootstrap_intervals_have_the_width_of_the_theory() -> None:
    generator = np.random.default_rng(0)
    n = 400
    scores = np.concatenate([generator.normal(0, 1, n), generator.normal(1, 1, n)])
    labels = np.repeat([0, 1], n)
    intervals = bootstrap_intervals(labels, scores, 0, resamples=4000)
    (low, high), found = intervals["auroc"], metrics(labels, scores)
    # Hanley and McNeil 1982 for equal sample sizes.
    auroc = found["auroc"]
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    error = np.sqrt((auroc * (1 - auroc) + (n - 1) * (q1 + q2 - 2 * auroc**2)) / n**2)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    # The other measures, over test sets drawn anew from the population.
    drawn = np.concatenate([generator.normal(0, 1, (1000, n)), generator.normal(1, 1, (1000, n))], axis=1)
    anew = [metrics(labels, row) for row in drawn]
    for name, (low, high) in intervals.items():
        assert low < found[name] < high
        truth = np.subtract(*np.quantile([one[name] for one in anew], [0.975, 0.025]))
        assert high - low == pytest.approx(truth, rel=0.25), name
    first, again, other = (bootstrap_intervals(labels, scores, seed, resamples=50) for seed in (0, 0, 1))
    assert first == again != other
    assert bootstrap_intervals(labels, np.zeros(2 * n), 0)["auroc"] == (0.5, 0.5), "ties count half"


def test_of_many_rows_fewer_resamples_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = np.repeat([0, 1], 100), np.random.default_rng(0).normal(size=200)
    for most, expected in ((200 * 300, 300), (200, 100), (10**9, 1000)):
        monkeypatch.setattr("diffad_jax.metrics.MOST_DRAWN", most)
        assert bootstrap_intervals(labels, scores, 0) == bootstrap_intervals(labels, scores, 0, resamples=expected)


def test_groups_of_anomalies_are_each_set_against_all_normals() -> None:
    generator = np.random.default_rng(0)
    groups = generator.choice(["good", "crack", "hole", "scratch"], 400)
    labels = (groups != "good").astype(int)
    scores = np.round(generator.normal(0, 1, 400) + 2 * (groups == "hole"), 1)
    found = auroc_by_group(labels, scores, groups, 0)
    assert list(found) == ["crack", "hole", "scratch"]
    for name, (size, auroc, interval) in found.items():
        kept = (labels == 0) | (groups == name)
        assert size == np.count_nonzero(groups == name)
        assert auroc == pytest.approx(metrics(labels[kept], scores[kept])["auroc"], abs=1e-12)
        alone = bootstrap_intervals(labels[kept], scores[kept], 1)["auroc"]
        assert interval == pytest.approx(alone, abs=0.015) and interval[0] < auroc < interval[1]
    with pytest.raises(InputError, match=r"groups: shape \(399,\)"):
        auroc_by_group(labels, scores, groups[1:], 0)


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
            bootstrap_intervals(labels, scores, 0)
