"""Tables of numbers in `.csv` files, with names of their columns or without; one line for whatever is wrong."""

import csv
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffad_jax.errors import InputError, first_line

BOOLEANS = {"true": "1", "false": "0"}


def read_csv(path: Path, gaps: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the values [n, D] of a file of cells parted by commas, and the names of its columns, () where it has none.

    "0,1,2" are names, as data frames without names have them; True and False are 1 and 0. gaps: empty cells are NaN.
    Raises InputError where it cannot be read, on words and, unless `gaps`, on gaps, and where names are missing, twice, or
    may be values.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({first_line(error)}); save it as UTF-8") from error
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    rows = _rows(path, lines)
    head = [cell.strip() for cell in next(rows, [])]
    if len(head) == 1 and (mark := next(filter(head[0].__contains__, ";\t"), None)):
        raise InputError(
            f"{path}: looks parted by {mark!r}; allowed are cells parted by commas, and points within numbers (pandas: "
            f"read_csv({path.name!r}, sep={mark!r}, decimal=',').to_csv({path.name!r}, index=False))"
        )
    named = _are_names(path, head)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of an empty file, refused below
            above = lines.line_num if named else 0
            values = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=above, ndmin=2, comments=None, quotechar='"')
    except ValueError:
        values = np.zeros((0, 0))
    if not values.size or values.shape[1] != len(head):
        first = [] if named or not head else [head]
        places = [str(i) for i in range(len(head))]
        values = _values(path, lines, chain(first, rows), head if named else places, gaps)
    if not named and _may_be_names(values):
        logging.warning(
            "%s: the first line, %s, ascends as no other and lies outside of all; it is read as values: if it names the "
            "columns, name them by words",
            path,
            ",".join(head[:3]) + (",..." if len(head) > 3 else ""),
        )
    return values, tuple(head) if named else ()


def _rows(path: Path, lines: Any) -> Iterator[list[str]]:
    """The cells of each line of a csv.reader that is not empty."""
    try:
        yield from filter(None, lines)
    except csv.Error as error:
        raise InputError(f"{path}: line {lines.line_num}: cannot be read ({error})") from error


def _are_names(path: Path, head: Sequence[str]) -> bool:
    """Whether a first line names the columns; raises InputError where that cannot be told, or a name is missing or twice."""
    places = [str(i) for i in range(len(head))]
    if not any(_number(cell) is None for cell in head):
        if head == places and len(head) == 2:
            raise InputError(f"{path}: the first line, 0,1, may be names or values; name the columns by words")
        return head == places and len(head) > 2
    if not head[0]:
        raise InputError(
            f"{path}: column 0 has no name; name it, or leave row numbers out (pandas: to_csv(index=False))"
        )
    if odd := [cell for cell, place in zip(head, places) if _number(cell) is not None and cell != place]:
        raise InputError(
            f"{path}: the first line holds {odd[0]!r} beside words; name every column by a word, or fill gaps"
        )
    for place, name in enumerate(head):
        if not name or name in head[:place]:
            raise InputError(f"{path}: column {place} has {f'the name {name!r} of another' if name else 'no name'}")
    return True


def _may_be_names(values: np.ndarray) -> bool:
    """Whether the first of rows [n, D] may be numbers by which the columns go, as years or wave lengths.

    It ascends from column to column, as no other row does, and in each lies outside of what all others hold.
    """
    if len(values) < 3 or values.shape[1] < 3:
        return False
    first, others = values[0], values[1:]
    outside = (first < others.min(axis=0)) | (first > others.max(axis=0))
    return bool(outside.all() and (np.diff(first) > 0).all() and not (np.diff(others) > 0).all(axis=1).any())


def _values(path: Path, lines: Any, rows: Iterable[list[str]], names: Sequence[str], gaps: bool) -> np.ndarray:
    """What np.loadtxt, which is fast, does not read: booleans and gaps; raises InputError on what is no table.

    rows: those of the csv.reader `lines`. names: of the columns, or their places, from 0.
    """
    found: list[list[float | None]] = []
    for cells in rows:
        if len(cells) != len(names):
            cause = f"has {len(cells)} cells, expected are the {len(names)} of the first, parted by commas"
            raise InputError(f"{path}: line {lines.line_num} {cause}")
        found.append([math.nan if gaps and not cell.strip() else _number(cell) for cell in cells])
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
