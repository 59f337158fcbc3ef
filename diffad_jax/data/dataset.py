"""The one data type all loaders return, and how labelled rows become a training set of normals and a test set."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from diffad_jax.errors import InputError, check_choice

MIN_TRAIN_ROWS = 8
PROTOCOLS = ("clean", "paper")
PAPER_ROWS = 1_000, 10_000
CHUNK_VALUES = 1 << 22
MOST_LOOKED_AT = 1024  # files, of which a network disk may take a second
MOST_READ = 8
FLOAT32 = np.dtype(np.float32)


class Rows(Protocol):
    """Data [N, ...] that may lie on disk: an array, or pictures that are decoded when they are indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray:
        """The rows of a slice or of an int array, [n, ...]."""

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        """All rows at once, which must fit in memory."""


@dataclass(frozen=True)
class Chosen:
    """The rows of `rows` at `places`, read when they are indexed."""

    rows: Rows
    places: np.ndarray
    dtype: np.dtype = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.places), *self.rows.shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray:
        return np.asarray(self.rows[self.places[index]], self.dtype)

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        return self[:]


class Dataset(NamedTuple):
    """A one-class problem: train on normals, test on normals and anomalies.

    name: for reports.  train: numbers [N, D] or [N, H, W, C], normals only.  test: [M, ...].  labels: int [M], 0 normal,
    1 anomaly.  masks: bool [M, H, W], True on the defect, where the data have them.  groups: str [M], the class or the
    kind of defect of each test datum.  columns: the names of the columns of rows [N, D], where the data have them.  Values
    are raw; `transforms.fit(..., train)` brings them to model range.
    """

    name: str
    train: Rows
    test: Rows
    labels: np.ndarray
    masks: Rows | None = None
    groups: np.ndarray | None = None
    columns: tuple[str, ...] = ()


def nonfinite(rows: Rows) -> np.ndarray:
    """The numbers of the rows of [n, ...] that are not finite as float32, in bounded memory."""
    found = [np.zeros(0, int)]
    for start, stop in chunks(rows):
        with np.errstate(over="ignore"):
            values = rows[start:stop].astype(np.float32, copy=False)
        found.append(start + np.flatnonzero(~np.isfinite(values.reshape(stop - start, -1)).all(axis=1)))
    return np.concatenate(found)


def chunks(rows: Rows) -> list[tuple[int, int]]:
    """Row ranges (start, stop) that cover [n, ...] with at most about 4 million values in each."""
    step = max(1, CHUNK_VALUES // max(1, int(np.prod(rows.shape[1:]))))
    return [(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` of the numbers below `count`: files sorted by class are represented whole."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int)


def fingerprint(rows: Rows) -> str:
    """What tells training rows [N, ...] from others of that name: a hash of their shape and, of arrays, of their values.

    Of arrays of more than CHUNK_VALUES values evenly spaced rows are taken. Pictures in files are not decoded, which rounds
    differently on different machines: their names, or places, count, how many bytes evenly spaced ones take, and the bytes of
    a few.
    """
    found = hashlib.sha256(repr(tuple(rows.shape)).encode())
    if isinstance(rows, np.ndarray | Chosen):
        wanted = max(64, CHUNK_VALUES // int(np.prod(rows.shape[1:])))
        found.update(np.ascontiguousarray(rows[evenly_spaced(len(rows), wanted)], np.float64).tobytes())
    elif files := getattr(rows, "files", ()):
        looked_at, read = (set(evenly_spaced(len(files), most).tolist()) for most in (MOST_LOOKED_AT, MOST_READ))
        bytes_of = getattr(rows, "bytes_of", lambda file: None)
        for place, file in enumerate(files):
            # With the folder, which may be the class; folders above it may be others on another machine.
            name = "/".join(file.parts[-2:]) if isinstance(file, Path) else file
            found.update(repr((name, bytes_of(file) if place in looked_at else None)).encode())
            if place in read and isinstance(file, Path):
                with suppress(OSError):  # told of when it is learnt
                    found.update(file.read_bytes())
    return found.hexdigest()[:16]


def checked(X: ArrayLike, y: ArrayLike, source: str, normals_alone: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Validate a labelled table or stack of pictures and return (X, y).

    X becomes float32, or float64 where it is a table whose columns float32 would round away, such as one with time stamps; an
    X on disk (np.memmap) stays as stored. y becomes int64.
    X: [n, D], [n, H, W] (gets C = 1) or [n, H, W, C].  y: [n] of 0 (normal) and 1 (anomaly), both present, or with
    normals_alone 0 alone.
    Constant columns are allowed: the transforms divide by 1 where the spread is 0.
    Raises InputError, naming `source`, on other shapes or labels, on values that are not numbers, and on
    rows that are not finite as float32: what to do about missing values is the owner's decision, not ours.
    """
    X, y = np.asanyarray(X), np.asarray(y)
    if X.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
        raise InputError(f"{source}: X is {X.dtype} and y is {y.dtype}, both must be real numbers")
    if X.ndim not in (2, 3, 4) or 0 in X.shape:
        raise InputError(f"{source}: X has shape {X.shape}, allowed are non-empty [n, D], [n, H, W] and [n, H, W, C]")
    if y.shape != X.shape[:1]:
        raise InputError(f"{source}: y has shape {y.shape}, X has {X.shape[0]} rows: y must be [{X.shape[0]}]")
    values = np.unique(y)
    if not np.array_equal(values, [0, 1]) and not (normals_alone and not values.any()):
        shown = ", ".join(str(v) for v in values[:5].tolist()) + (", ..." if len(values) > 5 else "")
        raise InputError(
            f"{source}: y holds the labels {shown}, it must hold both 0 (normal) and 1 (anomaly) only; "
            "a measurement needs another name"
        )
    if not isinstance(X, np.memmap):
        with np.errstate(over="ignore"):
            X = X.astype(_precision(X, y), copy=False)
    if len(bad := nonfinite(X)):
        raise InputError(
            f"{source}: {len(bad)} of {len(X)} rows of X are not finite as float32 (first: row {bad[0]}): "
            "fill or remove them"
        )
    return (X[..., None] if X.ndim == 3 else X), y.astype(np.int64)


def _precision(X: np.ndarray, y: np.ndarray) -> np.dtype:
    """float64 for a table [n, D] where a column of the normals varies too little around too large a value for float32.

    Else float32. How far off anomalies are says nothing of it.
    """
    if X.ndim == 2 and (X.dtype.kind != "f" or X.dtype.itemsize > 4):
        normals = Chosen(X, np.flatnonzero(y == 0), np.dtype(np.float64))
        # Away from the first row, so that the squares of large values do not hide the spread.
        first, sums, squares, ends = normals[:1], 0.0, 0.0, 0.0
        with np.errstate(all="ignore"):
            for start, stop in chunks(normals):
                rows = normals[start:stop]
                away = rows - first
                sums, squares = sums + away.sum(axis=0), squares + np.square(away).sum(axis=0)
                ends = np.maximum(ends, np.abs(rows.astype(np.float32)).max(axis=0))
            count = len(normals)
            spread = np.sqrt(np.maximum(squares / count - np.square(sums / count), 0))
            if ((spread > 0) & (16 * np.spacing(ends) > spread)).any():
                return np.dtype(np.float64)
    return FLOAT32


def one_class_split(
    X: ArrayLike,
    y: ArrayLike,
    name: str,
    *,
    protocol: str = "clean",
    seed: int = 0,
    source: str | None = None,
    normals_alone: bool = False,
) -> Dataset:
    """Split labelled rows into normal-only training rows and a labelled test set.

    train = the first round(0.5 n) of the n normal rows; test = the other normals, then all anomalies. With
    normals_alone there may be no anomaly: then nothing can be tested, and all rows train.
    X: [n, D], [n, H, W] or [n, H, W, C]; y: [n], 0 normal, 1 anomaly; both are validated as in `checked`.

    protocol "clean": seed 0 keeps the file order; each seed from 1 on shuffles the normals before the split.
    protocol "paper": sets under 1,000 rows are first resampled to 1,000 WITH replacement. THIS LEAKS: copies of one
    row land in train and in test, which flatters methods that memorise. Sets over 10,000 rows are thinned to 10,000. Use it
    only beside tables produced that way (both are steps of ADBench's data generator, Han et al. 2022, arXiv:2206.09426).
    Raises InputError on invalid data, an unknown protocol, a negative seed or fewer than 8 training rows.
    """
    source = source or name
    check_choice("protocol", protocol, PROTOCOLS)
    if seed < 0:
        raise InputError(f"seed: found {seed}, allowed are integers from 0")
    X, y = checked(X, y, source, normals_alone)
    least, most = PAPER_ROWS
    if protocol == "paper" and not least <= len(y) <= most:
        few = len(y) < least
        draw = np.random.default_rng(seed).choice(len(y), least if few else most, replace=few)
        # The rows drawn of a table on disk are in memory.
        X, y = X[draw].astype(_precision(X, y), copy=False), y[draw]
    normal, anomalous = np.flatnonzero(y == 0), np.flatnonzero(y == 1)
    if seed > 0:
        normal = np.random.default_rng(seed).permutation(normal)
    half = round(0.5 * len(normal)) if len(anomalous) else len(normal)
    if half < MIN_TRAIN_ROWS:
        raise InputError(f"{source}: {len(normal)} normal rows give {half} to train on, needed are {MIN_TRAIN_ROWS}")
    test = np.concatenate([normal[half:], anomalous])
    if isinstance(X, np.memmap):
        precision = _precision(X, y)
        return Dataset(name, Chosen(X, normal[:half], precision), Chosen(X, test, precision), y[test])
    return Dataset(name, X[normal[:half]], X[test], y[test])
