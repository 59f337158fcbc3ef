"""How well anomaly scores rank anomalies above normals; labels are 0 (normal) and 1 (anomaly)."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from diffad_jax.errors import InputError


def metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """Compute the four figures of a report, each a fraction in [0, 1], from labels [M] and raw scores [M].

    auroc: area under the ROC curve.  aupr: average precision, sum_n (R_n - R_(n-1)) P_n.
    f1: F1 when the k highest scores are called anomalous, k the number of anomalies (so F1 = precision = recall);
    tied scores at the cut count by their share, the mean over all orders of the tied rows.
    fpr95: the smallest false positive rate at a recall of at least 95 %; lower is better.
    Raises InputError on lengths that differ, labels other than both of 0 and 1, and scores that are not finite.
    """
    y, s = _checked(labels, scores)
    fpr, recall, _ = roc_curve(y, s, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(y, s)),
        "aupr": float(average_precision_score(y, s)),
        "f1": _f1_at_true_rate(y, s),
        "fpr95": float(fpr[np.argmax(recall >= 0.95)]),
    }


def threshold(normal_scores: ArrayLike, quantile: float = 0.95) -> float:
    """The score above which a datum is called anomalous: that quantile of the scores [N] of normals.

    Use normals that were not trained on; about 1 - quantile of all normals will be called anomalous.
    Raises InputError on an empty or non-finite array, and on a quantile outside [0, 1].
    """
    s = np.asarray(normal_scores, np.float64)
    if s.ndim != 1 or not s.size or not np.isfinite(s).all():
        raise InputError(
            f"normal_scores: shape {s.shape}, {np.count_nonzero(~np.isfinite(s))} not finite, "
            "allowed is a non-empty [N] of finite scores"
        )
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile: found {quantile}, allowed are 0 to 1")
    return float(np.quantile(s, quantile))


def bootstrap_interval(
    labels: ArrayLike, scores: ArrayLike, seed: int, *, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the AUROC for labels [M] and scores [M].

    Normals and anomalies are resampled apart, so each resample keeps both counts; AUROC is the share of pairs in which
    the anomaly scores higher, ties counting half. Only the test rows vary, not the training.
    Raises InputError as `metrics` does.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    y, s = _checked(labels, scores)
    generator = np.random.default_rng(seed)
    values, rank = np.unique(s, return_inverse=True)
    normal, anomalous = rank[y == 0], rank[y == 1]
    aurocs = np.empty(resamples)
    for i in range(resamples):
        drawn = np.bincount(generator.choice(normal, len(normal)), minlength=len(values))
        pairs_won = np.cumsum(drawn) - drawn / 2
        aurocs[i] = pairs_won[generator.choice(anomalous, len(anomalous))].mean() / len(normal)
    low, high = np.quantile(aurocs, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _f1_at_true_rate(y: np.ndarray, s: np.ndarray) -> float:
    k = int(y.sum())
    cut = np.partition(s, -k)[-k]
    above, tied = s > cut, s == cut
    hits = y[above].sum() + (k - np.count_nonzero(above)) * y[tied].mean()
    return float(hits / k)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(labels), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise InputError(f"scores: shape {s.shape}, labels have {y.shape}, allowed are two arrays [M]")
    if not np.array_equal(np.unique(y), [0, 1]):
        raise InputError(f"labels: found {np.unique(y)[:5].tolist()}, allowed are 0 and 1, both present")
    if bad := np.count_nonzero(~np.isfinite(s)):
        raise InputError(f"scores: {bad} of {len(s)} are not finite (first: row {np.argmax(~np.isfinite(s))})")
    return y.astype(np.int64), s
