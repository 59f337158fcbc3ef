"""results.csv, which survives a kill: a row for each data set, method, protocol and seed, of data that must not change."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from diffad_jax import csv_files
from diffad_jax.console import bar
from diffad_jax.data.dataset import Dataset
from diffad_jax.errors import InputError
from diffad_jax.files import read_json, save_json, write_atomically
from diffad_jax.methods import Detection
from diffad_jax.metrics import METRICS
from diffad_jax.workdir import held


class Key(NamedTuple):
    """Which result: of a data set, by a method, under a protocol (or what is normal), with a seed."""

    dataset: str
    method: str
    protocol: str
    seed: int


FIELDS = (*Key._fields, *METRICS, "n_train", "n_test", "seconds_train", "seconds_score", "error")

Row = dict[str, Any]
"""A line of results.csv: FIELDS, with metrics as fractions in [0, 1] (None where the method failed) and `error` one line."""


class Results:
    """results.csv, a row for each (dataset, method, protocol, seed); every row is on disk before the next is computed."""

    def __init__(self, path: Path):
        """Opens or begins the file; a last line that a kill cut short is dropped, and failures, which are to be tried again.

        Raises InputError where the file is no such table.
        """
        self.path = path
        rows = [dict(zip(FIELDS, line)) for line in csv_files.read(path, FIELDS)]
        try:
            self.rows = [parsed(row) for row in rows if not row["error"]]
        except ValueError as error:
            raise InputError(f"{path}: a row is damaged ({error}); remove it, or choose another directory") from error
        self.done = {key_of(row) for row in self.rows}
        self.rewrite(self.rows)

    def missing(self, keys: Sequence[Key]) -> Iterator[Key]:
        """Those of the keys that are not there, one after the other, with a progress bar over all."""
        pending = [key for key in keys if key not in self.done]
        yield from bar(pending, total=len(keys), initial=len(keys) - len(pending), unit="result", smoothing=0)

    def append(self, row: Row) -> None:
        """Adds one row and waits until it is on disk."""
        self.rows.append(row)
        self.done.add(key_of(row))
        csv_files.append(self.path, [_cells(row)])

    def rewrite(self, rows: list[Row]) -> None:
        """Replaces the file by these rows, at once."""
        self.rows = rows
        write_atomically(self.path, csv_files.lines([FIELDS, *map(_cells, rows)]))


@contextmanager
def results_in(out: Path, data_dir: Path, digests: Mapping[str, str]) -> Iterator[Results]:
    """The results of one folder of data, to which no other process adds meanwhile.

    digests: see `claim_data`. Raises InputError where `out`, by its run.json, holds those of another folder, or by its
    data.json those of other data, before anything is changed there, and where another process adds to them.
    """
    with held(out / "run.json", {"data_dir": str(data_dir.resolve())}, "results", "directory of results"):
        claim_data(out, digests)
        yield Results(out / "results.csv")


def claim_data(out: Path, digests: Mapping[str, str]) -> None:
    """Keeps in out/data.json, by name, a digest of the data that results are of.

    Raises InputError where one has changed since, as figures of two data sets would stand in one row.
    """
    path = out / "data.json"
    held = read_json(path) if path.exists() else {}
    if changed := [name for name, digest in digests.items() if held.get(name, digest) != digest]:
        raise InputError(
            f"{out}: holds results of other data in {', '.join(changed)} than there are now; choose another directory"
        )
    save_json(path, {**held, **digests})


def key_of(row: Mapping[str, Any]) -> Key:
    """Which result a row holds."""
    return Key(*(row[field] for field in Key._fields))


def row(key: Key, values: Mapping[str, Any]) -> Row:
    """A row of the table, rounded to what the file holds, so that what is read back equals what was written."""
    full: Row = dict.fromkeys(FIELDS) | key._asdict() | dict(values)
    full |= {field: round(full[field], 6) for field in METRICS if full[field] is not None}
    full |= {field: round(full[field], 3) for field in ("seconds_train", "seconds_score") if full[field] is not None}
    return full | {"error": " ".join(str(full["error"] or "").split())}


def measured(key: Key, dataset: Dataset, found: Detection, values: Mapping[str, float]) -> Row:
    """The row of a success: its metrics `values`, how much data there was, and how long it took."""
    counts = {"n_train": len(dataset.train), "n_test": len(dataset.test)}
    seconds = {"seconds_train": found.seconds_train, "seconds_score": found.seconds_score}
    return row(key, {**values, **counts, **seconds})


def parsed(line: Mapping[str, str]) -> Row:
    """A line of the file with its numbers as numbers; raises ValueError where one is none."""
    floats = (*METRICS, "seconds_train", "seconds_score")
    numbers: Row = {field: float(line[field]) if line[field] else None for field in floats}
    counts: Row = {field: int(line[field]) if line[field] else None for field in ("n_train", "n_test")}
    counts["seed"] = int(line["seed"])
    return {field: (numbers | counts).get(field, line[field]) for field in FIELDS}


def _cells(row: Row) -> list[Any]:
    return [row[field] for field in FIELDS]
