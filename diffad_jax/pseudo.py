"""Pseudo-anomalies: spoilt normals, by which detectors can be compared where no anomaly and no label may be looked at."""

import numpy as np


def pseudo_anomalies(normals: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Spoil each row x of normals [M, D], M >= 2, in four ways, by another row x' and the deviations s of the columns.

    "swap half" and "swap fifth": each column of x is that of x' with probability 0.5 or 0.2, so that every value is a normal
    one and only what the columns have to do with each other is wrong (between two rows what Shi and Horvath 2006,
    "Unsupervised learning with random forest predictors", do with all).  "extrapolate": x + 0.3 (x - x'), outwards within
    the span of the normals.  "noise": x + 0.5 s eps, outwards in all directions. Each [M, D]; the same for the same seed.
    """
    generator = np.random.default_rng(seed)
    # Neighbours on one circle through all rows: none is its own partner.
    order = generator.permutation(len(normals))
    other = np.empty_like(normals)
    other[order] = normals[np.roll(order, 1)]
    swapped = {
        name: np.where(generator.random(normals.shape) < fraction, other, normals)
        for name, fraction in (("swap half", 0.5), ("swap fifth", 0.2))
    }
    noise = normals.std(axis=0) * generator.normal(size=normals.shape)
    return {**swapped, "extrapolate": normals + 0.3 * (normals - other), "noise": normals + 0.5 * noise}
