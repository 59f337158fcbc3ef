"""CSV files that survive a kill: what was appended is on disk, and a last line that was cut short is not read."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffad_jax.errors import InputError


def lines(rows: Iterable[Sequence[object]]) -> bytes:
    """The rows as the bytes of a CSV file; None is an empty cell. Paths that are no UTF-8 keep their bytes."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


def append(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Adds rows, if any, and waits until they are on disk."""
    if rows:
        with path.open("ab") as file:
            file.write(lines(rows))
            file.flush()
            os.fsync(file.fileno())


def read(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The whole lines below the head, none where there is no file; raises InputError where its columns are others.

    What was cut short has fewer cells, or no end.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    found = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if found and found[0] != list(columns):
        raise InputError(f"{path}: has the columns {','.join(found[0])}, expected {','.join(columns)}")
    return [line for line in found[1:] if len(line) == len(columns)]
