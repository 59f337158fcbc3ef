"""Which normals lie in groups of different density? Each group is measured in its own unit (`nearness.bandwidths`).

Densities differ everywhere, and where they pass into each other a sparse region is a sign of anomalies. Groups are told from
that by the gaps between their densities: k-means (Lloyd 1982) on the logarithms of how far rows lie from their neighbours.
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
    if len(apart) < 2 * least or apart.std() < ROUNDING:
        return one
    from sklearn.cluster import KMeans  # here: the import takes longer than the fit

    points = np.quantile(apart, (np.arange(POINTS) + 0.5) / POINTS)[:, None]
    for k in range(2, 1 + min(MOST_GROUPS, len(np.unique(points)))):
        means = KMeans(k, n_init=3, random_state=0).fit(points)
        centres = np.sort(means.cluster_centers_[:, 0])
        found = np.searchsorted((centres[1:] + centres[:-1]) / 2, around)
        sizes = np.bincount(found[counted > 0], minlength=k)
        clear = means.inertia_ * k**2 < LEFT * POINTS * points.var()
        if clear and sizes.min() >= least and np.diff(centres).min() > np.log(ratio):
            return found
    return one
