"""Which normals lie in groups of different density? Each group is measured in its own unit (`nearness.bandwidths`).

Densities differ everywhere, and where they pass into each other a sparse region is a sign of anomalies. Groups are told from
that by the gaps between their densities: k-means on the logarithms of how far rows lie from their neighbours.
"""

import numpy as np

MOST_GROUPS = 5
LEFT = 0.6  # of the variance that k groups leave of a uniform distribution; of a normal one they leave 1.45 and more
SHARE = 0.05  # of the rows, at least in each group
POINTS = 512  # quantiles that stand for all rows
ROUNDING = 1e-5  # of logarithms


def groups(h: np.ndarray, neighbours: np.ndarray, ratio: float) -> np.ndarray:
    """The group of each row, 0 the densest: [N] -> int [N], all 0 where there is one.

    h: >= 0, how far each row is from its neighbours; where it is 0, the density is not known, and counts as the highest.
    neighbours: int [N, K], the places of the nearest rows, over whose logarithms each one's is averaged: a row at the edge of
    a group has sparse surroundings, but neighbours of the group's density.
    The fewest groups k <= 5 that leave less than 0.6 / k^2 of the variance of these averages (1 / k^2 is what the best k
    groups leave of a uniform distribution), each of more than K rows and a twentieth of all, and of more than `ratio` times
    the h of the one before.
    """
    known = h > 0
    logs = np.where(known, np.log(np.where(known, h, 1)), 0)
    counted = known[neighbours].sum(axis=1)
    around = np.where(counted > 0, logs[neighbours].sum(axis=1) / np.maximum(counted, 1), -np.inf)
    apart = around[counted > 0]
    least = max(neighbours.shape[1] + 1, SHARE * len(apart))
    one = np.zeros(len(h), int)
    if len(apart) < 2 * least or np.ptp(apart) <= max(np.log(ratio), ROUNDING):
        return one
    points = np.quantile(apart, (np.arange(POINTS) + 0.5) / POINTS)
    for bounds, left in best_parts(points, min(MOST_GROUPS, len(np.unique(points))))[1:]:
        k = len(bounds) - 1
        centres = np.add.reduceat(points, bounds[:-1]) / np.diff(bounds)
        found = np.searchsorted((centres[1:] + centres[:-1]) / 2, around)
        sizes = np.bincount(found[counted > 0], minlength=k)
        clear = left * k**2 < LEFT * POINTS * points.var()
        if clear and sizes.min() >= least and np.diff(centres).min() > np.log(ratio):
            return found
    return one


def best_parts(points: np.ndarray, most: int) -> list[tuple[np.ndarray, float]]:
    """The k-means of ascending points [N] for k = 1 to `most` <= N: k + 1 bounds of the parts, and the sum of squares left.

    Part i is points[bounds[i] : bounds[i + 1]]. Exact and in O(most N^2), since the best groups of numbers are runs of them,
    and the best k runs of the first j are k - 1 best ones of the first i, and a last one (Wang & Song 2011, "Ckmeans.1d.dp:
    optimal k-means clustering in one dimension by dynamic programming").
    """
    centred = points - points.mean()  # far from 0 the difference of squares below loses its digits
    total, squares = (np.concatenate([[0], np.cumsum(values)]) for values in (centred, centred**2))
    count = np.arange(len(total)) - np.arange(len(total))[:, None]
    within = squares - squares[:, None] - (total - total[:, None]) ** 2 / np.maximum(count, 1)
    within = np.where(count > 0, np.maximum(within, 0), np.inf)  # [i, j], of the run from i to j
    best, starts = within[0], []
    found = [(np.array([0, len(points)]), float(best[-1]))]
    for _ in range(1, most):
        sums = best[:, None] + within
        starts.append(sums.argmin(axis=0))
        best = sums[starts[-1], np.arange(len(best))]
        bounds = [len(points)]
        for start in reversed(starts):
            bounds.append(int(start[bounds[-1]]))
        found.append((np.array([0, *reversed(bounds)]), float(best[-1])))
    return found
