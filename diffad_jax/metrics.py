"""How well anomaly scores rank anomalies above normals; labels are 0 (normal) and 1 (anomaly)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffad_jax.errors import InputError

Interval = tuple[float, float]
RESAMPLES, FEWEST_RESAMPLES, MOST_DRAWN = 1000, 100, 20_000_000
METRICS = {"auroc": "AUROC", "aupr": "AUPR", "f1": "F1", "fpr95": "FPR95"}
LOWER_IS_BETTER = {"fpr95"}


class GroupAuroc(NamedTuple):
    """AUROC of one group of `size` anomalies against all normals, with its bootstrap interval."""

    size: int
    auroc: float
    interval: Interval


def metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """Compute the four figures of a report, each a fraction in [0, 1], from labels [M] and raw scores [M].

    auroc: area under the ROC curve.  aupr: average precision, sum_n (R_n - R_(n-1)) P_n.
    f1: F1 when the k highest scores are called anomalous, k the number of anomalies (so F1 = precision = recall);
    tied scores at the cut count by their share, the mean over all orders of the tied rows.
    fpr95: the smallest false positive rate at a recall of at least 95 %; lower is better.
    Raises InputError on lengths that differ, labels other than both of 0 and 1, and scores that are not finite.
    """
    y, s = _checked(labels, scores)
    values, rank = np.unique(-s, return_inverse=True)
    normals, anomalies = (np.bincount(rank[y == kind], minlength=len(values)) for kind in (0, 1))
    return _from_counts(normals, anomalies)


def threshold(normal_scores: ArrayLike, quantile: float = 0.95) -> float:
    """The score above which a datum is called anomalous: of rank (N + 1) quantile among the scores [N] of normals.

    Use normals that were not trained on; of all normals 1 - quantile will be called anomalous on average, or 1 / (N + 1)
    where N is too small for so few: U_(k), the k-th of N uniform numbers, is k / (N + 1) on average.
    Raises InputError on an empty or non-finite array, and on a quantile outside [0, 1].
    Source: Hyndman & Fan 1996 ("Sample quantiles in statistical packages"), definition 6.
    """
    s = np.asarray(normal_scores, np.float64)
    if s.ndim != 1 or not s.size or not np.isfinite(s).all():
        raise InputError(
            f"normal_scores: shape {s.shape}, {np.count_nonzero(~np.isfinite(s))} not finite, "
            "allowed is a non-empty [N] of finite scores"
        )
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile: found {quantile}, allowed are 0 to 1")
    return float(np.quantile(s, quantile, method="weibull"))


def above_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> dict[str, float]:
    """The shares of normals (label 0), which it promises, and of anomalies (1) above a threshold; both must be there."""
    called, labels = np.asarray(scores) > threshold, np.asarray(labels)
    kinds = {"normals_above_threshold": 0, "anomalies_above_threshold": 1}
    return {key: float(called[labels == label].mean()) for key, label in kinds.items()}


def bootstrap_intervals(
    labels: ArrayLike, scores: ArrayLike, seed: int, *, resamples: int | None = None
) -> dict[str, Interval]:
    """95 % percentile bootstrap intervals (low, high) of the four `metrics`, for labels [M] and scores [M].

    Normals and anomalies are resampled apart, so each resample keeps both counts. Only the test rows vary, not the
    training. resamples: by default 1,000, of more than 20,000 rows fewer, down to 100: their intervals are narrow anyhow.
    Raises InputError as `metrics` does.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    y, s = _checked(labels, scores)
    generator = np.random.default_rng(seed)
    values, rank = np.unique(-s, return_inverse=True)
    classes = rank[y == 0], rank[y == 1]
    drawn = [
        _from_counts(*(np.bincount(generator.choice(kind, len(kind)), minlength=len(values)) for kind in classes))
        for _ in range(resamples or _resamples(len(y)))
    ]
    return {name: _interval(np.array([found[name] for found in drawn])) for name in drawn[0]}


def auroc_by_group(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    seed: int,
) -> dict[str, GroupAuroc]:
    """AUROC of each group of anomalies (a defect, a class) against all normals, by the name of the group, sorted.

    groups [M] name every item of labels [M] and scores [M]; those of normals are not read. Intervals are as in
    `bootstrap_intervals`, with the anomalies resampled within their groups.
    Raises InputError as `metrics` does, and on groups of another length.
    """
    y, s = _checked(labels, scores)
    named = np.asarray(groups, str)
    if named.shape != y.shape:
        raise InputError(f"groups: shape {named.shape}, labels have {y.shape}, allowed are two arrays [M]")
    names, group = np.unique(named[y == 1], return_inverse=True)
    order = np.argsort(group, kind="stable")
    count = np.bincount(group)
    start = np.cumsum(count) - count
    values, rank = np.unique(s, return_inverse=True)
    normal, anomalous = rank[y == 0], rank[y == 1][order]

    def aurocs(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
        """The mean share of normals below the anomalies of each group, ties counting half."""
        held = np.bincount(normal, minlength=len(values))
        below = np.cumsum(held) - held / 2
        return np.add.reduceat(below[anomalous], start) / (count * len(normal))

    generator = np.random.default_rng(seed)
    drawn = np.empty((_resamples(len(y)), len(names)))
    for i in range(len(drawn)):
        within = np.repeat(start, count) + generator.integers(np.repeat(count, count))
        drawn[i] = aurocs(generator.choice(normal, len(normal)), anomalous[within])
    found = zip(names, count, aurocs(normal, anomalous), drawn.T, strict=True)
    return {str(name): GroupAuroc(int(n), float(auroc), _interval(column)) for name, n, auroc, column in found}


def _from_counts(normals: np.ndarray, anomalies: np.ndarray) -> dict[str, float]:
    """The four `metrics` from how many normals and anomalies have each distinct score, the highest score first."""
    false, true = np.cumsum(normals), np.cumsum(anomalies)
    n, k = false[-1], true[-1]
    called = np.maximum(false + true, 1)  # a resample may hold nothing of the highest scores
    cut = np.searchsorted(false + true, k)
    tied = normals[cut] + anomalies[cut]
    hits = true[cut] - anomalies[cut] * (false[cut] + true[cut] - k) / tied
    return {
        "auroc": float(anomalies @ (n - false + normals / 2) / (n * k)),
        "aupr": float(anomalies @ (true / called) / k),
        "f1": float(hits / k),
        "fpr95": float(false[np.argmax(true / k >= 0.95)] / n),
    }


def _resamples(rows: int) -> int:
    return max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_DRAWN // rows))


def _interval(drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(labels), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise InputError(f"scores: shape {s.shape}, labels have {y.shape}, allowed are two arrays [M]")
    if not np.array_equal(np.unique(y), [0, 1]):
        raise InputError(f"labels: found {np.unique(y)[:5].tolist()}, allowed are 0 and 1, both present")
    if bad := np.count_nonzero(~np.isfinite(s)):
        raise InputError(f"scores: {bad} of {len(s)} are not finite (first: row {np.argmax(~np.isfinite(s))})")
    return y.astype(np.int64), s
