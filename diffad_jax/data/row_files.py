"""Data in one file, rows [n, D] or pictures, with labels or without: `.npz`, `.npy` and `.csv`."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffad_jax.data.csv_rows import read_csv
from diffad_jax.data.dataset import checked
from diffad_jax.data.npz import read_arrays, read_npy
from diffad_jax.errors import InputError

SUFFIXES = (".npz", ".npy", ".csv")
LABELS = "y"
FIRST_ROWS = 1000  # looked at before the others, as reading a column of a file on disk reads all of it
# What a table may call its labels, alone or as the last word.
LIKE_LABELS = re.compile(
    r"(?i:y|y_?true|class|target|ground[ _]?truth|fraud_?(?:bool|flag|found(?:_?p)?))"
    r"|(?i:(?:is_?)?(?:normal|abnormal|defective|faulty|malicious|intrusion))"
    r"|(?:.*[^A-Za-z]|.*[a-z](?=[A-Z])|is)?(?i:labels?|anomal(?:y|ies|ous)|outliers?|fraud)"
)
# And what may be measurements as well, but hardly of 0 and 1.
MAY_BE_LABELS = re.compile(r"(?i:(?:.*[^A-Za-z]|is)?(?:attacks?|failures?|faults?|defects?|outcome|status|result))")


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


def read(path: str | Path, gaps: bool = False) -> Stored:
    """Read a file of data; with `gaps` an empty cell of a `.csv` is NaN.

    `.npz`: the arrays X and y, or X and nothing else, since another may be labels. `.npy`: X. `.csv`: a table as `read_csv`
    reads it, of which a column named y is the labels.
    Raises InputError where the file is missing or damaged, and on labels by another name in a `.csv`, which would be learnt.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".npy":
        return Stored(read_npy(path), None)
    if path.suffix.lower() == ".csv":
        return _labels_apart(path, *read_csv(path, gaps))
    arrays = read_arrays(path, ("X",), (LABELS,))
    with np.load(path) as archive:
        if LABELS not in arrays and len(archive.files) > 1:
            raise InputError(
                f"{path}: holds {sorted(archive.files)}, array {LABELS} is missing; without it X must be alone"
            )
    return Stored(arrays["X"], arrays.get(LABELS))


def warn_of_odd_columns(stored: Stored, source: str) -> None:
    """Says which columns of a table are to be learnt though they look like labels without a name for it, or row numbers.

    Labels may be the last column, or one whose name may tell so. Of rows without names the last and the first are looked at.
    """
    if stored.X.ndim != 2 or not stored.X.size:
        return
    width = stored.X.shape[1]
    for place in range(width) if stored.columns else sorted({0, width - 1}):
        name = repr(stored.columns[place]) if stored.columns else f"number {place + 1}"
        column = stored.X[:, place]
        suspicious = place == width - 1 or (stored.columns and MAY_BE_LABELS.fullmatch(stored.columns[place]))
        labels = stored.y is None and suspicious and set(np.unique(column[:FIRST_ROWS])) <= {0, 1}
        if labels and set(np.unique(column)) == {0, 1}:
            logging.warning(
                "%s: has no column %s, so that all %d rows are normals, and learns %s, of 0 and 1; if that tells "
                "anomalies, call it %s",
                source,
                LABELS,
                len(column),
                name,
                LABELS,
            )
        if (
            column.dtype.kind != "b"
            and len(column) > 2
            and (np.diff(column[:FIRST_ROWS]) == 1).all()
            and (np.diff(column) == 1).all()
        ):
            logging.warning("%s: learns column %s, which counts the rows; leave row numbers out", source, name)


def labelled(path: str | Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read labelled data on which to evaluate a trained model: X [n, D] or [n, H, W, C], y int [n], columns.

    X is of the precision that `dataset.checked` gives it. y: 0 normal, 1 anomaly; pictures are values 0..255. Raises
    InputError as `read` and `dataset.checked` do, and without y.
    """
    stored = read(path)
    if stored.y is None:
        raise InputError(f"{path}: holds no labels, needed is {LABELS} (0 normal, 1 anomaly)")
    return *checked(stored.X, stored.y, str(path)), stored.columns


def unlabelled(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read data to score: X [n, D], [n, H, W] (gets C = 1) or [n, H, W, C] as stored, without labels, and columns.

    Empty cells of a `.csv` are NaN. Raises InputError as `read` does; other arrays than X of an `.npz` are not read.
    """
    columns: tuple[str, ...] = ()
    if Path(path).suffix.lower() == ".npz":
        X = read_arrays(path, ("X",))["X"]
    else:
        X, _, columns = read(path, gaps=True)
    if X.ndim == 0:
        raise InputError(f"{path}: X is a single {X.dtype} number, allowed are rows [n, D] and pictures")
    return X[..., None] if X.ndim == 3 else X, columns


def _labels_apart(path: Path, values: np.ndarray, columns: tuple[str, ...]) -> Stored:
    """The table [n, D] with its labels, if it has some, set apart."""
    if LABELS in columns:
        place = columns.index(LABELS)
        if len(columns) == 1:
            raise InputError(f"{path}: holds {LABELS} alone")
        return Stored(np.delete(values, place, axis=1), values[:, place], (*columns[:place], *columns[place + 1 :]))
    if odd := [name for name in columns if LIKE_LABELS.fullmatch(name)]:
        turned = re.fullmatch("(?i:(?:is_?)?normal)", odd[0])
        advice = f"put 1 - it as {LABELS} in its place" if turned else f"call it {LABELS}"
        raise InputError(
            f"{path}: column {odd[0]!r} looks like labels; {advice} (0 normal, 1 anomaly), or leave it out"
        )
    return Stored(values, None, columns)
