"""Data in one file, rows [n, D] or pictures, with labels or without: `.npz`, `.npy` and `.csv`."""

import csv
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffad_jax.data.dataset import checked
from diffad_jax.data.npz import read_arrays, read_npy
from diffad_jax.errors import InputError, first_line

SUFFIXES = (".npz", ".npy", ".csv")
LABELS = "y"
# What a table may call its labels, alone or as the last word.
LIKE_LABELS = re.compile(
    r"(?i:y|class|target)|(?:.*[^A-Za-z]|.*[a-z](?=[A-Z]))?(?i:labels?|anomal(?:y|ies|ous)|outliers?|fraud)"
)
BOOLEANS = {"true": "1", "false": "0"}


def is_row_file(path: str | Path) -> bool:
    """Whether the name is that of a file that `read` takes."""
    return Path(path).suffix.lower() in SUFFIXES


class Stored(NamedTuple):
    """X: [n, ...] as stored. y: [n], None where the file has no labels. columns: names of X's columns, where it has them."""

    X: np.ndarray
    y: np.ndarray | None
    columns: tuple[str, ...] = ()

    def labels(self) -> np.ndarray:
        """y, or 0 everywhere: rows without labels are normals."""
        return np.zeros(self.X.shape[:1], int) if self.y is None else self.y


def read(path: str | Path) -> Stored:
    """Read a file of data.

    `.npz`: the arrays X and y, or X and nothing else, since another may be labels. `.npy`: X. `.csv`: numbers below a line of
    column names, of which y is the labels, or numbers alone. "0,1,2" are names, as data frames without names have them.
    Raises InputError where the file is missing or damaged, and where a `.csv` holds words or gaps, or labels by another name,
    which would be learnt.
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
    columns: tuple[str, ...] = ()
    if Path(path).suffix.lower() == ".npz":
        X = read_arrays(path, ("X",))["X"]
    else:
        X, _, columns = read(path)
    return X[..., None] if X.ndim == 3 else X, columns


def _read_csv(path: Path) -> Stored:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({first_line(error)})") from error
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    rows = _rows(path, lines)
    head = [cell.strip() for cell in next(rows, [])]
    named = _are_names(path, head)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of an empty file, refused below
            above = lines.line_num if named else 0
            values = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=above, ndmin=2, comments=None, quotechar='"')
    except ValueError:
        values = np.zeros((0, 0))
    if not values.size or values.shape[1] != len(head):
        first = [] if named or not head else [head]
        values = _values(path, lines, chain(first, rows), head if named else [str(i) for i in range(len(head))])
    if not named:
        return Stored(values, None)
    _check_names(path, head)
    if LABELS not in head:
        return Stored(values, None, tuple(head))
    if len(head) == 1:
        raise InputError(f"{path}: holds {LABELS} alone")
    place = head.index(LABELS)
    return Stored(np.delete(values, place, axis=1), values[:, place], (*head[:place], *head[place + 1 :]))


def _rows(path: Path, lines: Any) -> Iterator[list[str]]:
    """The cells of each line of a csv.reader that is not empty."""
    try:
        yield from filter(None, lines)
    except csv.Error as error:
        raise InputError(f"{path}: line {lines.line_num}: cannot be read ({error})") from error


def _are_names(path: Path, head: Sequence[str]) -> bool:
    """Whether a first line names the columns; raises InputError where that cannot be told."""
    places = [str(i) for i in range(len(head))]
    if not any(_number(cell) is None for cell in head):
        if head == places and len(head) == 2:
            raise InputError(f"{path}: the first line, 0,1, may be names or values; name the columns by words")
        return head == places and len(head) > 2
    if odd := [cell for cell, place in zip(head, places) if _number(cell) is not None and cell != place]:
        raise InputError(
            f"{path}: the first line holds {odd[0]!r} beside words; name every column by a word, or fill gaps"
        )
    return True


def _values(path: Path, lines: Any, rows: Iterable[list[str]], names: Sequence[str]) -> np.ndarray:
    """What np.loadtxt, which is fast, does not read: booleans; raises InputError on what is no table.

    rows: those of the csv.reader `lines`. names: of the columns, or their places, from 0.
    """
    found: list[list[float | None]] = []
    for cells in rows:
        if len(cells) != len(names):
            cause = f"has {len(cells)} cells, expected are the {len(names)} of the first, parted by commas"
            raise InputError(f"{path}: line {lines.line_num} {cause}")
        found.append([_number(cell) for cell in cells])
        if None in found[-1]:
            place = found[-1].index(None)
            cause = f"found {cells[place]!r} in column {names[place]!r}, allowed are numbers, parted by commas"
            raise InputError(f"{path}: line {lines.line_num}: {cause}")
    if not found:
        raise InputError(f"{path}: holds no rows")
    return np.array(found, np.float64)


def _number(cell: str) -> float | None:
    """The number that a cell holds, True and False being 1 and 0, None where it is none."""
    word = cell.strip().lower()
    try:
        return float(BOOLEANS.get(word, word)) if "_" not in word else None
    except ValueError:
        return None


def _check_names(path: Path, columns: Sequence[str]) -> None:
    """Raises InputError on a column without a name, such as row numbers, a name given twice, labels by another name."""
    for place, name in enumerate(columns):
        if not name:
            raise InputError(
                f"{path}: column {place} has no name; name it, or leave it out (pandas: to_csv(index=False))"
            )
        if name in columns[:place]:
            raise InputError(f"{path}: two columns are named {name!r}")
        if LIKE_LABELS.fullmatch(name) and LABELS not in columns:
            raise InputError(
                f"{path}: column {name!r} looks like labels; call it {LABELS} (0 normal, 1 anomaly), or leave it out"
            )
