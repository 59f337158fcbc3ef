"""The rows of a file, scored by a trained run: scores.csv."""

from pathlib import Path

from diffad_jax import csv_files
from diffad_jax.data.row_files import unlabelled
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically
from diffad_jax.score_table import COLUMNS, Counts, claim_scores, score_lines


def score_rows(trained: Trained, file: Path, out: Path) -> Counts:
    """Scores the rows of a file, see `row_files.unlabelled`: out/scores.csv, whose path is the row's number.

    Raises InputError, naming the file, where it cannot be read, does not fit the run or is not finite, and where `out` holds
    other scores.
    """
    rows, columns = unlabelled(file)
    rows = trained.statistics.arranged(rows, columns, str(file))
    try:  # before anything is written
        trained.statistics.transform.check(rows)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if not len(rows):
        raise InputError(f"{file}: holds no rows")
    claim_scores(out, trained, file)  # before the work, which another's directory would waste
    scores = trained.score(rows)
    table = score_lines(map(str, range(len(rows))), scores, trained.statistics)
    write_atomically(out / "scores.csv", csv_files.lines([COLUMNS, *table]))
    return Counts(len(table), len(table), sum(row[3] for row in table), 0)
