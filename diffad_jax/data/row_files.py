"""Data in one file, rows [n, D] or pictures, with labels or without: `.npz`, `.npy` and `.csv`."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffad_jax.data.dataset import checked
from diffad_jax.data.npz import read_arrays, read_npy
from diffad_jax.errors import InputError, first_line

SUFFIXES = (".npz", ".npy", ".csv")
LABELS = "y"
OTHER_LABELS = ("label", "labels", "class", "target", "anomaly", "outlier", "is_anomaly", "is_outlier")


class Stored(NamedTuple):
    """X: [n, ...] as stored. y: [n], None where the file has no labels. columns: names of X's columns, where it has them."""

    X: np.ndarray
    y: np.ndarray | None
    columns: tuple[str, ...] = ()

    def labels(self) -> np.ndarray:
        """y, or 0 everywhere: rows without labels are normals."""
        return np.zeros(len(self.X), int) if self.y is None else self.y


def read(path: str | Path) -> Stored:
    """Read a file of data.

    `.npz`: the arrays X and y, or X and nothing else. `.npy`: X. `.csv`: numbers below a line of column names, of which y is
    the labels, or numbers alone.
    Raises InputError where the file is missing or damaged, holds words or gaps, or has labels by another name, which would
    otherwise be learnt.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".npy":
        return Stored(read_npy(path), None)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    arrays = read_arrays(path, ("X",), (LABELS,))
    with np.load(path) as archive:
        if LABELS not in arrays and len(archive.files) > 1:
            raise InputError(
                f"{path}: holds {sorted(archive.files)}, array {LABELS} is missing; without it X must be alone"
            )
    return Stored(arrays["X"], arrays.get(LABELS))


def labelled(path: str | Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read labelled data on which to evaluate a trained model: X float32 [n, D] or [n, H, W, C], y int [n], columns.

    y: 0 normal, 1 anomaly; pictures are values 0..255. Raises InputError as `read` and `dataset.checked` do, and without y.
    """
    stored = read(path)
    if stored.y is None:
        raise InputError(f"{path}: holds no labels, needed is {LABELS} (0 normal, 1 anomaly)")
    return *checked(stored.X, stored.y, str(path)), stored.columns


def unlabelled(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read data to score: X [n, D], [n, H, W] (gets C = 1) or [n, H, W, C] as stored, without labels, and columns.

    Raises InputError as `read` does; other arrays than X of an `.npz` are not read.
    """
    path = Path(path)
    X, _, columns = Stored(read_arrays(path, ("X",))["X"], None) if path.suffix.lower() == ".npz" else read(path)
    return X[..., None] if X.ndim == 3 else X, columns


def _read_csv(path: Path) -> Stored:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = [cell.strip() for cell in next(csv.reader(file), [])]
            named = not all(map(_is_number, head))
            file.seek(0)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of an empty file, refused below
                values = np.loadtxt(file, delimiter=",", skiprows=int(named), ndmin=2, comments=None, quotechar='"')
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: {_fault(path) or f'cannot be read as numbers ({first_line(error)})'}") from error
    if not values.size:
        raise InputError(f"{path}: holds no rows")
    if not named:
        return Stored(values, None)
    _check_names(path, head)
    if LABELS not in head:
        return Stored(values, None, tuple(head))
    place = head.index(LABELS)
    return Stored(np.delete(values, place, axis=1), values[:, place], (*head[:place], *head[place + 1 :]))


def _fault(path: Path) -> str:
    """What the first line that is none of numbers alone holds, "" where none is found."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            head = next(reader)
            for cells in filter(None, reader):
                if len(cells) != len(head):
                    return (
                        f"line {reader.line_num} has {len(cells)} cells, expected are the {len(head)} of the first line"
                    )
                for name, cell in zip(head, cells):
                    if not _is_number(cell):
                        return f"line {reader.line_num}: found {cell!r} in column {name!r}, allowed are numbers"
    except (OSError, ValueError, csv.Error, StopIteration):
        pass
    return ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_names(path: Path, columns: Sequence[str]) -> None:
    """Raises InputError on a column without a name, such as row numbers, a name given twice, labels by another name."""
    for place, name in enumerate(columns):
        if not name:
            raise InputError(
                f"{path}: column {place} has no name; name it, or leave it out (pandas: to_csv(index=False))"
            )
        if name in columns[:place]:
            raise InputError(f"{path}: two columns are named {name!r}")
        if name.lower() in OTHER_LABELS and LABELS not in columns:
            raise InputError(
                f"{path}: column {name!r} looks like labels; call it {LABELS} (0 normal, 1 anomaly), or leave it out"
            )
