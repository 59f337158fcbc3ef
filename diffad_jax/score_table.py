"""scores.csv: whose scores stand in a directory, and a row (path, score, probability, label) for each of them."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffad_jax import csv_files
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically
from diffad_jax.statistics import Statistics
from diffad_jax.workdir import PLACES, as_json, flatten, held

COLUMNS = ("path", "score", "probability", "label")
UNREADABLE = ("path", "cause")


class Counts(NamedTuple):
    """scored: rows in scores.csv; new: those that this call added; anomalous: those with label 1; unreadable: this time."""

    scored: int
    new: int
    anomalous: int
    unreadable: int


def probability(statistics: Statistics, scores: np.ndarray) -> np.ndarray:
    """1 - p, with p = (1 + #{normals that score as high or higher}) / (n + 1): scores [B] -> [B] in [0, 1).

    p is the marginal conformal p-value of Bates et al. 2023 ("Testing for outliers with conformal p-values") for "this is a
    normal"; the n normals are those of `Statistics.normal_scores`. It is no probability of being an anomaly, which depends on
    how frequent anomalies are: of new normals a share of about 1 - c lies above the value c. It is not exact: where
    the n normals were trained on, more lie above it, and where each was judged by the others alone, fewer, for n below a
    hundred (3.3 to 4 % for 5 % at n = 19). n bounds it: nothing lies above 1 - 1 / (n + 1).
    """
    normals = statistics.normal_scores
    as_high = len(normals) - np.searchsorted(normals, scores, side="left")
    return 1 - (1 + as_high) / (len(normals) + 1)


def score_lines(paths: Iterable[str], scores: np.ndarray, statistics: Statistics) -> list[tuple[str, str, str, int]]:
    """The rows of scores.csv, see `probability`; the label is 1 above the threshold.

    Six digits: the last bits of a score depend on where in a batch its datum stands.
    """
    chances, labels = probability(statistics, scores), scores > statistics.threshold
    return [(n, f"{s:.6g}", f"{p:.6g}", int(y)) for n, s, p, y in zip(paths, scores, chances, labels, strict=True)]


class ScoreTable:
    """scores.csv: rows are on disk when `append` returns. labels: {path: label} of all of them."""

    def __init__(self, path: Path, stale: Collection[str] = ()) -> None:
        """Opens or begins the file; rows of `stale` paths, and what a kill cut short or is damaged otherwise, are dropped.

        Raises InputError on another table.
        """
        self.path = path
        # A path may hold a line break, so that what was cut short may end in one.
        rows = [row for row in csv_files.read(path, COLUMNS) if row[3] in ("0", "1") and row[0] not in stale]
        write_atomically(path, csv_files.lines([COLUMNS, *rows]))
        self.labels = {row[0]: int(row[3]) for row in rows}

    def labels_of(self, paths: Iterable[str]) -> list[int]:
        """The labels of those of the paths that are there."""
        return [self.labels[path] for path in paths if path in self.labels]

    def append(self, paths: Iterable[str], scores: np.ndarray, statistics: Statistics) -> None:
        """Adds a row for each score but for those whose path is there already."""
        new = [row for row in score_lines(paths, scores, statistics) if row[0] not in self.labels]
        csv_files.append(self.path, new)
        self.labels |= {row[0]: row[3] for row in new}


@contextmanager
def scores_in(out: Path, trained: Trained, root: Path) -> Iterator[None]:
    """Makes `out` the place for the scores of one run and one folder or file, by one process at a time.

    run.json tells which, by a hash and a path. Raises InputError where `out` holds another's, or lies in the folder, whose
    pictures its heat maps would then be, and where another process scores into it.
    """
    root = root.resolve()
    if root.is_dir() and out.resolve().is_relative_to(root):
        raise InputError(f"{out}: lies in the folder of pictures {root}, choose another directory of scores")
    # The scores of its normals tell a run from another of the same config; where its data lie may have changed.
    told = {key: value for key, value in flatten(as_json(trained.config)).items() if key not in PLACES}
    run = json.dumps(told, sort_keys=True).encode() + trained.statistics.normal_scores.tobytes()
    identity = {"input": str(root), "sha256": hashlib.sha256(run).hexdigest()[:16]}
    with held(out / "run.json", identity, "scores", "directory of scores"):
        yield
