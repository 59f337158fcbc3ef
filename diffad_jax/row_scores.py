"""The rows of a file, scored by a trained run: scores.csv."""

from pathlib import Path

import numpy as np

from diffad_jax import csv_files
from diffad_jax.console import bar
from diffad_jax.data.dataset import Chosen, Rows, nonfinite
from diffad_jax.data.row_files import unlabelled
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically
from diffad_jax.score_table import COLUMNS, UNREADABLE, Counts, score_lines, scores_in

REASONS = ("path", "column", "value", "usual", "score")
MOST = 3  # columns of a row
ROUNDING = 1e-4  # of a score
ROWS_AT_ONCE = 16  # between two steps of the progress bar


def score_rows(trained: Trained, file: Path, out: Path, on_error: str = "skip", why: bool = False) -> Counts:
    """Scores the rows of a file, see `row_files.unlabelled`: out/scores.csv, whose path is the row's number.

    out/unreadable.csv: the rows that are not finite, which have no score. why: with out/reasons.csv, see `reason_lines`, of
    the rows with label 1. Raises InputError, naming the file, where it cannot be read, does not fit the run, holds no row
    that is finite or, with on_error "fail" (rather than "skip"), one that is not, where `out` holds other scores, and where
    reasons are asked of a run that has learnt pictures.
    """
    if why:
        trained.check_columns()
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
    with scores_in(out, trained, file):  # before the work, which another's directory would waste
        scores = trained.score(rows)
        table = score_lines(map(str, numbers), scores, trained.statistics)
        write_atomically(out / "unreadable.csv", csv_files.lines([UNREADABLE, *((row, "not finite") for row in bad)]))
        (out / "reasons.csv").unlink(missing_ok=True)
        write_atomically(out / "scores.csv", csv_files.lines([COLUMNS, *table]))
        if why:
            strange = np.flatnonzero(scores > trained.statistics.threshold)
            lines = reason_lines(trained, rows[strange], numbers[strange], scores[strange])
            write_atomically(out / "reasons.csv", csv_files.lines([REASONS, *lines]))
    return Counts(len(table), len(table), sum(row[3] for row in table), len(bad))


def reason_lines(
    trained: Trained, rows: np.ndarray, numbers: np.ndarray, scores: np.ndarray
) -> list[tuple[object, ...]]:
    """The rows of reasons.csv: up to MOST columns of each of these rows [M, D], the most to blame first.

    path: the row's number. column: its name, or its number from 0. value: what it is. usual, score: to what it would have to
    be changed, alone, for the row to score so much less (`reasons`).
    """
    names, lines = trained.statistics.columns or range(rows.shape[1]), []
    for start in bar(range(0, len(rows), ROWS_AT_ONCE), desc="reasons", unit=f"{ROWS_AT_ONCE} rows", disable=None):
        some = slice(start, start + ROWS_AT_ONCE)
        found = trained.reasons(rows[some])
        for number, row, own, after, usual in zip(numbers[some], rows[some], scores[some], *found, strict=True):
            falls = np.flatnonzero(after < own - ROUNDING * abs(own))
            for j in falls[np.argsort(after[falls], kind="stable")][:MOST]:
                lines.append((number, names[j], *(f"{value:.6g}" for value in (row[j], usual[j], after[j]))))
    return lines
