"""The kinds of transforms: what each learns of the training normals, and how it maps raw rows to model range and back."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffad_jax.data import whitening
from diffad_jax.data.dataset import Rows, chunks
from diffad_jax.data.spread import as_rows, span, spread_of
from diffad_jax.data.whitening import Arrays
from diffad_jax.errors import InputError


class Kind(NamedTuple):
    """fit: (train [N, ...], options) -> the arrays that are kept, whose names are `keeps`.

    apply, invert: (arrays, rows [n, D] of float64, of bytes of `of_bytes`) -> rows [n, D] in model range, and raw again; None
    where they cannot be brought back. largest: arrays -> the largest raw value of a range that begins with 0, None where no
    such range is known.
    of_bytes: the precision for uint8: in float32 a range keeps up with what decodes pictures.
    """

    fit: Callable[..., Arrays]
    keeps: tuple[str, ...]
    apply: Callable[[Arrays, np.ndarray], np.ndarray]
    invert: Callable[[Arrays, np.ndarray], np.ndarray] | None
    largest: Callable[[Arrays], float | None] = lambda arrays: None
    of_bytes: type[np.floating] = np.float64


# --- range, standardise: (x - center) * scale ---------------------------------------------------------------------------


def _fit_range(train: Rows, low: float, high: float) -> Arrays:
    """2 (x - low) / (high - low) - 1, so [low, high] -> [-1, 1]; later values are not clipped.

    Raises InputError on training values outside [low, high].
    """
    smallest, largest = span(train)
    if not low < high or smallest < low or largest > high:
        raise InputError(
            f"transform 'range': low = {low}, high = {high}, but training values span "
            f"[{smallest:g}, {largest:g}], which [low, high] must hold"
        )
    # Scalars broadcast over the columns, so a picture's statistics stay two numbers.
    return {"center": np.array((low + high) / 2.0), "scale": np.array(2.0 / (high - low))}


def _fit_standardise(train: Rows) -> Arrays:
    """(x - mean) / std per column, of the rows that `spread_of` does not leave out; a constant column is divided by 1."""
    _, mean, variance, _ = spread_of(train)
    return {"center": mean, "scale": 1.0 / np.sqrt(np.where(variance > 0, variance, 1.0))}


def _scaled(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    center, scale = (arrays[name].astype(rows.dtype) for name in ("center", "scale"))
    return (rows - center) * scale


def _unscaled(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    return rows / arrays["scale"] + arrays["center"]


def _largest_of_range(arrays: Arrays) -> float | None:
    half = float(1 / arrays["scale"])
    return 2 * half if float(arrays["center"]) == half else None


# --- contrast: (x - mean(x)) / (2 max(std(x), floor)) -------------------------------------------------------------------


def _fit_contrast(train: Rows) -> Arrays:
    """Mean and deviation of the datum itself: how bright and contrasty a picture was taken counts for nothing.

    The floor, a tenth of the median deviation of the training normals, keeps the noise of an empty picture small.
    Source: the global contrast normalisation of Ruff et al. 2018, "Deep one-class classification", section 4.
    """
    deviations = np.concatenate([as_rows(train, start, stop).std(axis=1) for start, stop in chunks(train)])
    return {"floor": np.array(np.median(deviations) / 10 or 1.0)}


def _contrasted(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / (2 * np.maximum(rows.std(axis=1, keepdims=True), arrays["floor"]))


def _largest_of_contrast(arrays: Arrays) -> float | None:
    # A tenth of the deviation that pictures had, which between 0 and 1 would have no room; 1 where they had none.
    floor = float(arrays["floor"])
    return 255.0 if floor > 0.1 and floor != 1 else None


KINDS = {
    "range": Kind(_fit_range, ("center", "scale"), _scaled, _unscaled, _largest_of_range, np.float32),
    "contrast": Kind(_fit_contrast, ("floor",), _contrasted, None, _largest_of_contrast),
    "standardise": Kind(_fit_standardise, ("center", "scale"), _scaled, _unscaled),
    "whiten": Kind(whitening.fit, ("center", "matrix", "deviation"), whitening.whitened, whitening.unwhitened),
}
