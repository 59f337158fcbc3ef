"""Statistics of the training normals that bring raw values to model range; evaluation needs only the saved arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffad_jax.build import build
from diffad_jax.data.dataset import Rows, chunks, evenly_spaced, nonfinite
from diffad_jax.data.transform_kinds import KINDS, Arrays, as_rows, span
from diffad_jax.errors import InputError

# Squares of values up to here, summed over all columns, are within float32's range.
LARGEST = 1e15
SCALE_ROWS = 64  # by which the scale of all is told


class Transform(NamedTuple):
    """A fitted map of a datum of `shape`; `arrays` holds all that the kind of this name needs to apply it."""

    name: str
    shape: tuple[int, ...]
    arrays: Arrays

    @property
    def deviations(self) -> np.ndarray | None:
        """What "whiten" has divided the columns by, [D]; None of other kinds."""
        return self.arrays.get("deviation")

    def apply(self, x: Rows) -> np.ndarray:
        """Map raw x [n, ...] to float32 [n, ...]; computed in float64 (bytes: `Kind.of_bytes`), chunk by chunk.

        A value beyond +-1e15, as a far anomaly's may be, becomes that, so that distances stay finite.
        Raises InputError as `check` does.
        """
        self.check(x)
        return self._of_checked(x)

    def _of_checked(self, x: Rows) -> np.ndarray:
        kind, result, bytes_ = KINDS[self.name], np.empty(x.shape, np.float32), x.dtype == np.uint8
        for start, stop in chunks(x):
            rows = kind.apply(self.arrays, as_rows(x, start, stop, kind.of_bytes if bytes_ else np.float64))
            if not bytes_:  # which are too small to leave the range
                np.clip(rows, -LARGEST, LARGEST, out=rows)
            result[start:stop] = rows.reshape(-1, *self.shape)
        return result

    def check(self, x: Rows) -> None:
        """Raises InputError on data [n, ...] of another shape or scale and on rows that are not finite.

        Where the run has learnt values from 0 to 255, or on another range from 0 on, of another scale are data within
        [-1, 1], and pictures most of which go beyond twice its end with a tenth of their pixels.
        """
        check_rows(x, self.shape)
        kind = KINDS[self.name]
        end = kind.largest(self.arrays)
        if end is None or end <= 8 or (x.dtype == np.uint8 and end >= 255) or not len(x):
            return
        smallest, largest = span(x)
        # Whole numbers may be pictures that are all but black.
        small = smallest >= -1 and 0 < largest <= 1 and any((x[a:b] % 1 != 0).any() for a, b in chunks(x))
        # To what cannot be brought back, as its contrast is its own, a larger scale is none.
        scaled = kind.invert is not None and len(self.shape) == 3
        large = scaled and largest > 2 * end and _most_exceed(x, 2 * end)
        if small or large:
            raise InputError(
                f"transform: data from {smallest:g} to {largest:g}, the run has learnt values from 0 to {end:g}"
            )

    def invert(self, y: np.ndarray) -> np.ndarray:
        """The raw data of model range y [n, ...], float32, as far as `apply` keeps what makes them.

        y itself of "contrast", which keeps neither the brightness of a picture nor its deviation, and of patches of pictures
        whose pixels have each their own statistics.
        """
        invert = KINDS[self.name].invert
        of_patches = y.shape[1:] != self.shape and any(array.size > 1 for array in self.arrays.values())
        if invert is None or of_patches:
            return y
        return invert(self.arrays, as_rows(y, 0, len(y))).reshape(y.shape).astype(np.float32)

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
        keys, name = set(arrays), str(arrays.get("name"))
        if not {"name", "shape"} <= keys or name not in KINDS or not set(KINDS[name].keeps) <= keys:
            needed = (
                f" and {', '.join(KINDS[name].keeps)}" if name in KINDS else f", the name one of {', '.join(KINDS)}"
            )
            raise InputError(f"transform: found the arrays {sorted(keys)}, expected name, shape{needed}")
        rest = {str(key): np.asarray(arrays[key]) for key in keys - {"name", "shape"}}
        return cls(name, tuple(int(n) for n in arrays["shape"]), rest)


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
    """The transform `name` of `transform_kinds.KINDS`, where their options stand, fitted on training normals [N, ...].

    Raises InputError on an unknown name or option, rows that are not finite, and as the kind does.
    """
    return fitted({"name": name, **options}, train)


def fitted(section: Mapping[str, Any], train: Rows) -> Transform:
    """`fit` by a config's section: the transform's name and its options. Raises InputError as `fit` does."""
    name = str(section.get("name"))
    if len(train.shape) < 2 or len(train) < 2:
        raise InputError(f"transform {name!r}: train has shape {train.shape}, allowed is [N, ...] with N >= 2")
    check_rows(train, train.shape[1:])
    return Transform(
        name,
        train.shape[1:],
        build("transform", {name: kind.fit for name, kind in KINDS.items()}, section, train=train),
    )


def _most_exceed(x: Rows, limit: float) -> bool:
    """Whether most of up to SCALE_ROWS pictures of x [n, H, W, C] hold a tenth of values above the limit."""
    some = np.asarray(x[evenly_spaced(len(x), SCALE_ROWS)]).reshape(min(len(x), SCALE_ROWS), -1)
    return bool((np.quantile(some, 0.9, axis=1) > limit).mean() > 0.5)


def check_rows(x: Rows, shape: tuple[int, ...]) -> None:
    """Raises InputError unless x is [n, *shape] of finite numbers."""
    if not isinstance(getattr(x, "dtype", None), np.dtype):
        raise InputError(f"transform: data is a {type(x).__name__}, allowed are NumPy arrays, see numpy.asarray")
    if x.dtype.kind not in "fiub" or len(x.shape) == 0 or x.shape[1:] != shape:
        expected = ", ".join(map(str, ("n", *shape)))
        raise InputError(f"transform: data is {x.dtype} {x.shape}, allowed are numbers [{expected}]")
    if x.dtype.kind == "f" and len(bad := nonfinite(x)):
        raise InputError(f"transform: {len(bad)} of {len(x)} rows are not finite as float32 (first: row {bad[0]})")
