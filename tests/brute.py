"""Nearest neighbours from the whole table of distances."""

import numpy as np


def brute_nearest(x: np.ndarray, bank: np.ndarray, k: int, units: np.ndarray | float = 1.0) -> np.ndarray:
    distances = np.linalg.norm(x[:, None].astype(float) - bank[None], axis=-1) / units
    return np.sort(distances, axis=1)[:, :k]
