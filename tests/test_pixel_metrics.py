"""Pixel AUROC and AUPRO against a walk over every threshold, known maps, and monotone transforms."""

import numpy as np
import pytest
from scipy import ndimage

from diffad_jax.errors import InputError
from diffad_jax.pixel_metrics import aupro, pixel_auroc


def case(seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with irregular defects that touch at corners, one without any, and maps of so few values that many tie."""
    generator = np.random.default_rng(seed)
    masks = ndimage.uniform_filter(generator.normal(size=(5, 13, 11)), (0, 2, 2)) > 0.5
    masks[2] = False
    return masks, generator.integers(0, levels, masks.shape) + levels // 3 * masks


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions by flood, each as a mask."""
    found, left = [], {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        region, edge = np.zeros_like(mask), [left.pop()]
        while edge:
            y, x = edge.pop()
            region[y, x] = True
            near = left & {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
            left -= near
            edge += near
        found.append(region)
    return found


def area(fpr: list[float], found: list[float], end: float) -> float:
    """The integral from 0 to `end` of the lines between the points, piece by piece."""
    total = 0.0
    for left, right, low, high in zip(fpr, fpr[1:], found, found[1:]):
        if left < min(right, end):
            cut = min(right, end)
            at_cut = low + (high - low) * (cut - left) / (right - left)
            total += (cut - left) * (low + at_cut) / 2
    return total


@pytest.mark.parametrize("levels", [2, 6, 1000])
@pytest.mark.parametrize("end", [0.05, 0.3, 1.0])
def test_both_equal_the_walk_over_every_threshold(levels: int, end: float) -> None:
    masks, maps = case(levels, levels)
    fpr, recall, overlap = [0.0], [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        fpr.append(called[~masks].mean())
        recall.append(called[masks].mean())
        overlap.append(float(np.mean([called[i][r].mean() for i, mask in enumerate(masks) for r in regions(mask)])))
    assert aupro(masks, maps, end) == pytest.approx(area(fpr, overlap, end) / end, abs=1e-12)
    assert pixel_auroc(masks, maps) == pytest.approx(area(fpr, recall, 1.0), abs=1e-12)


def test_known_maps_and_monotone_transforms() -> None:
    masks, maps = case(0, 50)
    constant = np.full(masks.shape, 7.0, np.float32)
    assert pixel_auroc(masks, masks * 1.0) == 1 and aupro(masks, masks * 1.0) == pytest.approx(1, abs=1e-12)
    assert pixel_auroc(masks, constant) == 0.5 and aupro(masks, constant) == pytest.approx(0.15)
    assert pixel_auroc(masks, -1.0 * masks) == aupro(masks, -1.0 * masks) == 0
    for transformed in (3 * maps - 5, np.exp(maps / 10), (maps.astype(np.float32)) ** 3):
        assert pixel_auroc(masks, transformed) == pixel_auroc(masks, maps)
        assert aupro(masks, transformed) == aupro(masks, maps)
    # A region counts as one however large: the single pixel that is found weighs as much as the many that are not.
    two = np.zeros((1, 20, 20), bool)
    two[0, 0, 0] = two[0, 10:, :] = True
    found = np.zeros(two.shape)
    found[0, 0, 0], found[0, 1:10] = 2, 1
    assert aupro(two, found) == pytest.approx(0.5, abs=0.02) and pixel_auroc(two, found) < 0.1


def test_what_cannot_be_measured_is_refused() -> None:
    masks, maps = case(0, 9)
    broken = maps.astype(np.float32)
    broken[0, 0, :2] = np.nan, np.inf
    for m, s, said in [
        (masks.astype(int), maps, r"masks: found int64 \(5, 13, 11\)"),
        (masks[:4], maps, r"found bool \(4, 13, 11\) for maps of \(5, 13, 11\)"),
        (masks[0], maps[0], "allowed are bool"),
        (masks, broken, "maps: 2 of 715 scores are not finite"),
        (np.zeros_like(masks), maps, "0 of 715 pixels are defective"),
        (np.ones_like(masks), maps, "715 of 715 pixels are defective"),
    ]:
        for measure in (pixel_auroc, aupro):
            with pytest.raises(InputError, match=said):
                measure(m, s)
    with pytest.raises(InputError, match="max_fpr: found 30"):
        aupro(masks, maps, 30)
