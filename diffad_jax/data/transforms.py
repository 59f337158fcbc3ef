"""Statistics of the training normals that bring raw values to model range; evaluation needs only the saved arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from diffad_jax.build import build
from diffad_jax.data.dataset import Rows, chunks, first_nonfinite
from diffad_jax.errors import InputError

Arrays = dict[str, np.ndarray]

MAX_WHITEN_WIDTH = 8192
# Squares of values up to here, summed over all columns, are within float32's range.
LARGEST = 1e15


class Transform(NamedTuple):
    """A fitted map of a datum of `shape`; `arrays` holds all that `apply` needs.

    With x flattened: (x - center) * scale, (x - center) @ matrix, or (x - mean(x)) / max(std(x), floor) / 2.
    """

    name: str
    shape: tuple[int, ...]
    arrays: Arrays

    def apply(self, x: Rows) -> np.ndarray:
        """Map raw x [n, ...] to float32 [n, ...]; computed in float64, chunk by chunk in bounded memory.

        A value beyond +-1e15, as a far anomaly's may be, becomes that, so that distances stay finite.
        Raises InputError as `check` does.
        """
        self.check(x)
        return self._of_checked(x)

    def _of_checked(self, x: Rows) -> np.ndarray:
        result = np.empty(x.shape, np.float32)
        for start, stop in chunks(x):
            rows = self._apply(_rows(x, start, stop))
            result[start:stop] = np.clip(rows, -LARGEST, LARGEST, out=rows).reshape(-1, *self.shape)
        return result

    def check(self, x: Rows) -> None:
        """Raises InputError on data [n, ...] of another shape or scale and on rows that are not finite.

        Of another scale are pictures from 0 to 1 where the run has learnt them from 0 to 255, or on a larger one.
        """
        check_rows(x, self.shape)
        if self.name == "range":
            half = float(1 / self.arrays["scale"])
            from_0 = float(self.arrays["center"]) == half
        else:
            # A tenth of the deviation that pictures had, which between 0 and 1 would have no room; 1 where they had none.
            half, floor = 127.5, float(self.arrays.get("floor", 0))
            from_0 = floor > 0.1 and floor != 1
        if not from_0 or half <= 4 or x.dtype.kind != "f" or not len(x):
            return
        smallest, largest = _span(x)
        if smallest < 0 or not 0 < largest <= 1:
            return
        # Whole numbers may be pictures that are all but black.
        if any((x[start:stop] % 1 != 0).any() for start, stop in chunks(x)):
            raise InputError(f"transform: data up to {largest:g}, the run has learnt values from 0 to {2 * half:g}")

    def _apply(self, rows: np.ndarray) -> np.ndarray:
        if "floor" in self.arrays:
            rows = rows - rows.mean(axis=1, keepdims=True)
            return rows / (2 * np.maximum(rows.std(axis=1, keepdims=True), self.arrays["floor"]))
        rows = rows - self.arrays["center"]
        return rows @ self.arrays["matrix"] if "matrix" in self.arrays else rows * self.arrays["scale"]

    def invert(self, y: np.ndarray) -> np.ndarray:
        """The raw data of model range y [n, ...], float32, as far as `apply` keeps what makes them.

        y itself of "contrast", which keeps neither the brightness of a picture nor its deviation, and of patches of pictures
        whose pixels have each their own statistics.
        """
        if "floor" in self.arrays or (y.shape[1:] != self.shape and self.arrays["center"].size > 1):
            return y
        rows = _rows(y, 0, len(y))
        matrix, scale = self.arrays.get("matrix"), self.arrays.get("scale")
        rows = rows / scale if matrix is None else np.linalg.solve(matrix.T, rows.T).T
        return (rows + self.arrays["center"]).reshape(y.shape).astype(np.float32)

    def view(self, x: Rows) -> Rows:
        """`apply` of raw x [n, ...]: at once where x is an array, row by row as they are read where x lies on disk.

        Raises InputError as `check` does.
        """
        self.check(x)  # Whole, as its rows may be read one by one, of which each for itself tells no scale.
        in_memory = isinstance(x, np.ndarray) and not isinstance(x, np.memmap)
        return self._of_checked(x) if in_memory else _View(x, self._of_checked)

    def to_arrays(self) -> Arrays:
        """Everything as plain arrays, for `np.savez` and for `from_arrays`."""
        return {"name": np.array(self.name), "shape": np.array(self.shape, np.int64), **self.arrays}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Transform":
        """The transform whose `to_arrays` gave these arrays; raises InputError when one of them is missing."""
        keys = set(arrays)
        affine = "center" in keys and keys & {"scale", "matrix"}
        if not {"name", "shape"} <= keys or not (affine or "floor" in keys):
            raise InputError(
                f"transform: found the arrays {sorted(keys)}, expected name, shape, and floor or center and scale or matrix"
            )
        rest = {str(key): np.asarray(arrays[key]) for key in keys - {"name", "shape"}}
        return cls(str(arrays["name"]), tuple(int(n) for n in arrays["shape"]), rest)


@dataclass(frozen=True)
class _View:
    """Rows on disk, transformed when they are read."""

    rows: Rows
    transform: Callable[[Rows], np.ndarray]
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray:
        return self.transform(self.rows[index])

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        return self.transform(self.rows)


def fit(name: str, train: Rows, **options: Any) -> Transform:
    """The transform `name`, fitted on training normals [N, ...].

    "range" (low, high): 2 (x - low) / (high - low) - 1, so [low, high] -> [-1, 1]; later values are not clipped.
    "contrast": (x - mean(x)) / (2 max(std(x), floor)), mean and deviation of the datum itself: how bright and contrasty a
    picture was taken counts for nothing (global contrast normalisation, as in Ruff et al. 2018, "Deep one-class
    classification", section 4). The floor, a tenth of the median deviation of the training normals, keeps the noise of an
    empty picture small.
    "standardise": (x - mean) / std per column; a constant column is divided by 1.
    "whiten" (pooling = 1.0, shrinkage = 0.0): ((x - mean) / s) W, PCA whitening by the shrunk covariance C of the scaled
    normals: W = V L^(-1/2) with C = V L V^T, leading components first, so that normals have about unit covariance even for
    N << D. `shrinkage`, or D / N where that is less, is a floor under the intensity rho of OAS: of few columns and many rows
    the covariance is known well. The scale s_j^2 = v_j + pooling PR median(v) of a column of variance v_j bends with the
    participation ratio PR = (sum v)^2 / sum v^2, the number of columns that share the variance: where a few columns hold it
    all, units are arbitrary and s nearly standardises; where many share it, as in embeddings, the unit is common and s is
    nearly constant. pooling = 0 standardises. A constant column has the variance that the shrinkage lends it,
    the less the more rows agree.

    Source of the shrinkage: Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", eq. 23, in the
    form of scikit-learn's `oas`, which neglects the terms 2/p.
    Raises InputError on an unknown name or option, rows that are not finite, training values outside [low, high],
    pooling below 0, shrinkage outside [0, 1] or more than 8192 columns to whiten.
    """
    return fitted({"name": name, **options}, train)


def fitted(section: Mapping[str, Any], train: Rows) -> Transform:
    """`fit` by a config's section: the transform's name and its options. Raises InputError as `fit` does."""
    name = str(section.get("name"))
    if len(train.shape) < 2 or len(train) < 2:
        raise InputError(f"transform {name!r}: train has shape {train.shape}, allowed is [N, ...] with N >= 2")
    check_rows(train, train.shape[1:])
    return Transform(name, train.shape[1:], build("transform", FITS, section, train=train))


def _fit_range(train: Rows, low: float, high: float) -> Arrays:
    smallest, largest = _span(train)
    if not low < high or smallest < low or largest > high:
        raise InputError(
            f"transform 'range': low = {low}, high = {high}, but training values span "
            f"[{smallest:g}, {largest:g}], which [low, high] must hold"
        )
    # Scalars broadcast over the columns, so a picture's statistics stay two numbers.
    return {"center": np.array((low + high) / 2.0), "scale": np.array(2.0 / (high - low))}


def _fit_contrast(train: Rows) -> Arrays:
    deviations = np.concatenate([_rows(train, start, stop).std(axis=1) for start, stop in chunks(train)])
    return {"floor": np.array(np.median(deviations) / 10 or 1.0)}


def _fit_standardise(train: Rows) -> Arrays:
    mean, variance = _moments(train)
    variance[variance == 0] = 1.0
    return {"center": mean, "scale": 1.0 / np.sqrt(variance)}


def _fit_whiten(train: Rows, pooling: float = 1.0, shrinkage: float = 0.0) -> Arrays:
    mean, variance = _moments(train)
    if len(mean) > MAX_WHITEN_WIDTH:
        raise InputError(f"transform 'whiten': {len(mean)} columns, allowed are up to {MAX_WHITEN_WIDTH}")
    if not 0 <= pooling < np.inf:
        raise InputError(f"transform 'whiten': pooling = {pooling}, allowed are numbers from 0")
    if not 0 <= shrinkage <= 1:
        raise InputError(f"transform 'whiten': shrinkage = {shrinkage}, allowed are 0 to 1")
    if not variance.any():
        return {"center": mean, "matrix": np.eye(len(mean))}
    participation = variance.sum() ** 2 / np.square(variance).sum()
    square = variance + pooling * participation * np.median(variance[variance > 0])
    unit = 1 / np.sqrt(np.where(square > 0, square, 1.0))
    covariance = np.zeros((len(mean), len(mean)))
    for start, stop in chunks(train):
        rows = (_rows(train, start, stop) - mean) * unit
        covariance += rows.T @ rows
    # The BLAS threads of an eigendecomposition wait for each other in a busy loop: where another process holds a core, two
    # of them take forty times as long as one.
    with threadpool_limits(1, "blas"):
        values, vectors = np.linalg.eigh(_shrunk(covariance / len(train), len(train), shrinkage))
    return {"center": mean, "matrix": unit[:, None] * vectors[:, ::-1] / np.sqrt(values[::-1])}


FITS: dict[str, Callable[..., Arrays]] = {
    "range": _fit_range,
    "contrast": _fit_contrast,
    "standardise": _fit_standardise,
    "whiten": _fit_whiten,
}


def _shrunk(covariance: np.ndarray, n: int, floor: float) -> np.ndarray:
    """(1 - rho) S + rho mu I, mu the mean variance, rho the oracle-approximating shrinkage for n rows.

    rho is at least min(floor, p / n).
    """
    p = len(covariance)
    mu = covariance.trace() / p
    mean_square = np.square(covariance).mean()
    excess = (n + 1) * (mean_square - mu**2 / p)
    rho = max(min((mean_square + mu**2) / excess, 1.0) if excess > 0 else 1.0, min(floor, p / n))
    return (1 - rho) * covariance + rho * mu * np.eye(p)


def _rows(x: Rows, start: int, stop: int) -> np.ndarray:
    """A chunk as float64 rows [n, D]."""
    return x[start:stop].reshape(stop - start, -1).astype(np.float64)


def _span(x: Rows) -> tuple[float, float]:
    """The smallest and the largest value; of integers on disk those of their type, since reading them all may take hours."""
    if not isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    ends = [(rows.min(), rows.max()) for rows in (x[start:stop] for start, stop in chunks(x))]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _moments(x: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each column, chunk by chunk in float64; exactly 0 for a constant column."""
    width = int(np.prod(x.shape[1:]))
    mean, variance = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for start, stop in chunks(x):
        rows = _rows(x, start, stop)
        mean += rows.sum(axis=0)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    mean /= len(x)
    for start, stop in chunks(x):
        variance += np.square(_rows(x, start, stop) - mean).sum(axis=0)
    variance /= len(x)
    # By equality, since the rounding of the mean leaves a constant column a spread just above 0.
    variance[low == high] = 0.0
    return mean, variance


def check_rows(x: Rows, shape: tuple[int, ...]) -> None:
    """Raises InputError unless x is [n, *shape] of finite numbers."""
    if not isinstance(getattr(x, "dtype", None), np.dtype):
        raise InputError(f"transform: data is a {type(x).__name__}, allowed are NumPy arrays, see numpy.asarray")
    if x.dtype.kind not in "fiub" or len(x.shape) == 0 or x.shape[1:] != shape:
        expected = ", ".join(map(str, ("n", *shape)))
        raise InputError(f"transform: data is {x.dtype} {x.shape}, allowed are numbers [{expected}]")
    count, first = first_nonfinite(x) if x.dtype.kind == "f" else (0, -1)
    if count:
        raise InputError(f"transform: {count} of {len(x)} rows are not finite (first: row {first})")
