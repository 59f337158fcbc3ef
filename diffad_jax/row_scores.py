"""The rows of a file, scored by a trained run: scores.csv."""

from pathlib import Path

import numpy as np

from diffad_jax import csv_files
from diffad_jax.data.dataset import Chosen, Rows, nonfinite
from diffad_jax.data.row_files import unlabelled
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically
from diffad_jax.score_table import COLUMNS, UNREADABLE, Counts, claim_scores, score_lines


def score_rows(trained: Trained, file: Path, out: Path, on_error: str = "skip") -> Counts:
    """Scores the rows of a file, see `row_files.unlabelled`: out/scores.csv, whose path is the row's number.

    out/unreadable.csv: the rows that are not finite, which have no score. Raises InputError, naming the file, where it cannot
    be read, does not fit the run, holds no row that is finite or, with on_error "fail" (rather than "skip"), one that is
    not, and where `out` holds other scores.
    """
    X, columns = unlabelled(file)
    X = trained.statistics.arranged(X, columns, str(file))
    bad = nonfinite(X) if on_error == "skip" and X.dtype.kind == "f" and X.ndim > 1 else np.zeros(0, int)
    if len(bad) == len(X) > 0:
        raise InputError(f"{file}: none of its {len(X)} rows is finite")
    numbers = np.delete(np.arange(len(X)), bad)
    rows: Rows = Chosen(X, numbers, X.dtype) if len(bad) else X
    try:  # before anything is written
        trained.statistics.transform.check(rows)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if not len(rows):
        raise InputError(f"{file}: holds no rows")
    claim_scores(out, trained, file)  # before the work, which another's directory would waste
    scores = trained.score(rows)
    table = score_lines(map(str, numbers), scores, trained.statistics)
    write_atomically(out / "unreadable.csv", csv_files.lines([UNREADABLE, *((row, "not finite") for row in bad)]))
    write_atomically(out / "scores.csv", csv_files.lines([COLUMNS, *table]))
    return Counts(len(table), len(table), sum(row[3] for row in table), len(bad))
