"""How well maps of anomaly scores find the defective pixels of pictures; masks are True where the defect is."""

import numpy as np
from scipy import ndimage

from diffad_jax.errors import InputError

TOUCHING = np.ones((3, 3))


def pixel_auroc(masks: np.ndarray, maps: np.ndarray) -> float:
    """Area in [0, 1] under the ROC curve of all pixels, from masks [N, H, W], bool, and raw score maps [N, H, W].

    It is the share of pairs (defective pixel, defect-free pixel) in which the defective one scores higher, ties
    counting half: exact, by one sort of the defect-free pixels in the maps' own precision.
    Raises InputError on shapes that differ, masks that are not bool, scores that are not finite, and pixels of one kind.
    """
    normal = _sorted_normal(masks, maps)
    areas = [_found(normal, scores[mask], 1.0) for mask, scores in zip(masks, maps, strict=True)]
    return float(np.concatenate(areas).mean())


def aupro(masks: np.ndarray, maps: np.ndarray, max_fpr: float = 0.3) -> float:
    """Area in [0, 1] under the per-region overlap curve, from masks [N, H, W], bool, and raw score maps [N, H, W].

    PRO(c) = mean over the regions R of all masks of |R and {score >= c}| / |R|, where pixels that touch, by a corner
    even, are of one region; FPR(c) is the share of the defect-free pixels of all pictures with score >= c.
    The result is the integral of PRO over FPR from 0 to max_fpr, divided by max_fpr: over every threshold that there is,
    linear between them. A constant map has max_fpr / 2.
    Raises InputError as `pixel_auroc` does, and on max_fpr outside (0, 1].
    Source: Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", IJCV 129, section 5.1.2.
    """
    if not 0 < max_fpr <= 1:
        raise InputError(f"max_fpr: found {max_fpr}, allowed is above 0 to 1")
    normal = _sorted_normal(masks, maps)
    areas = []
    for mask, scores in zip(masks, maps, strict=True):
        regions = ndimage.label(mask, TOUCHING)[0][mask]
        pixels = np.bincount(regions)[1:]
        areas.append(np.bincount(regions, _found(normal, scores[mask], max_fpr))[1:] / pixels)
    return float(np.concatenate(areas).mean() / max_fpr)


def _found(normal: np.ndarray, scores: np.ndarray, max_fpr: float) -> np.ndarray:
    """For each of the scores the length of the part of [0, max_fpr], the axis of FPR, on which its pixel is called.

    Where scores of defect-free pixels equal its own the curve runs straight from their first to their last.
    """
    # Looked up in order, which spares the memory three jumps in four.
    values, place = np.unique(scores, return_inverse=True)
    first = 1 - np.searchsorted(normal, values, "right") / len(normal)
    last = 1 - np.searchsorted(normal, values, "left") / len(normal)
    slanted = np.clip(max_fpr - first, 0, last - first)
    slope = np.divide(slanted, last - first, out=np.zeros_like(slanted), where=last > first)
    return (slanted * slope / 2 + np.maximum(max_fpr - last, 0))[place]


def _sorted_normal(masks: np.ndarray, maps: np.ndarray) -> np.ndarray:
    if masks.dtype != bool or masks.ndim != 3 or masks.shape != maps.shape:
        raise InputError(
            f"masks: found {masks.dtype} {masks.shape} for maps of {maps.shape}, allowed are bool [N, H, W] for both shapes"
        )
    if bad := maps.size - np.count_nonzero(np.isfinite(maps)):
        raise InputError(f"maps: {bad} of {maps.size} scores are not finite")
    normal = maps[~masks]
    if normal.size in (0, maps.size):
        raise InputError(
            f"masks: {maps.size - normal.size} of {maps.size} pixels are defective, allowed are some, not all"
        )
    normal.sort()
    return normal
