"""The constants of `ours` and of the whitening, chosen without a label of the sets in --data_dir.

python -m experiments.selection --data_dir FOLDER --out DIR [--rows X,Y] [--labelled OTHERS]

Of each ADBench set only the training normals are read, at most 1,500 of them. Two thirds are the detector's; the rest must be
told from its own pseudo-anomalies, and the criterion is the AUROC of that, the mean over kinds and sets. OTHERS are sets of
the same format that nothing else is measured on: their labels are read, and the criterion is the mean of the former and of
the AUROC on these. One constant changes at a time, from the plain method on (columns standardised, OAS, one unit everywhere),
until no change helps. Writes selection.csv, a line for each setting and set, and selection.md into DIR.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from diffad_jax import csv_files, nearness
from diffad_jax.console import bar
from diffad_jax.data import transforms
from diffad_jax.data.adbench import adbench
from diffad_jax.data.dataset import Dataset
from diffad_jax.errors import InputError
from diffad_jax.evaluation import joined
from diffad_jax.files import write_atomically
from diffad_jax.metrics import metrics
from diffad_jax.neighbours import BATCH
from diffad_jax.pseudo import pseudo_anomalies
from diffad_jax.table import grid
from experiments import cli

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of ADBench .npz files of X, y.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory for the results.", required=True)
ROWS = flags.DEFINE_list("rows", [], "Data sets; all of the folder by default.")
LABELLED = flags.DEFINE_string("labelled", None, "Folder of other sets, whose labels may be read.")
MAX_ROWS = 1500
SEED = 0
ANOMALIES = "anomalies"
distances = jax.jit(nearness.distances, static_argnames="terms")


class Settings(NamedTuple):
    """The constants of `transforms.fit("whiten")` and `nearness`; by default the plain method."""

    pooling: float = 0.0
    shrinkage: float = 0.0
    clip: float = 1.0
    bandwidth_neighbours: int = 3
    terms: float = 0.0
    views: int = 1
    margin: float = np.inf


# Pooling ends at 1: beyond, columns keep the unit that they came in, whatever it is.
GRID: dict[str, tuple[float, ...]] = {
    "pooling": (0.0, 0.03, 0.1, 0.3, 1.0),
    "shrinkage": (0.0, 0.1, 0.3, 0.5, 0.8),
    "clip": (1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0),
    "bandwidth_neighbours": (1, 3, 5, 10),
    "terms": (0.0, 100.0, 300.0, 1000.0, np.inf),
    "views": (1, 2),
    "margin": (0.0, 0.25, 0.5, 1.0, np.inf),
}


class Problem(NamedTuple):
    """Normals [N, D] to fit a detector on, other normals [M, D], and what must be told from these, [K, D] by kind."""

    name: str
    normals: np.ndarray
    held_out: np.ndarray
    abnormal: dict[str, np.ndarray]


def of_normals(name: str, normals: np.ndarray) -> Problem:
    """The problem that a set's training normals [N, D] make with their pseudo-anomalies."""
    drawn = shuffled(normals)
    held_out = drawn[2 * len(drawn) // 3 :]
    return Problem(name, drawn[: 2 * len(drawn) // 3], held_out, pseudo_anomalies(held_out, SEED))


def of_labels(dataset: Dataset) -> Problem:
    """A labelled set as it is."""
    test = np.asarray(dataset.test)
    normals, anomalies = test[dataset.labels == 0], test[dataset.labels == 1]
    return Problem(dataset.name, shuffled(np.asarray(dataset.train)), normals, {ANOMALIES: anomalies})


def shuffled(normals: np.ndarray) -> np.ndarray:
    """The rows [N, D] in another order, at most MAX_ROWS of them."""
    return normals[np.random.default_rng(SEED).permutation(len(normals))[:MAX_ROWS]]


def separations(problem: Problem, candidates: Sequence[Settings]) -> list[dict[str, float]]:
    """The AUROC of each kind against the held-out normals, for `methods.ours` with each of the settings."""
    fitted, found = None, []
    groups = [problem.held_out, *problem.abnormal.values()]
    ends = np.cumsum([len(group) for group in groups])[:-1]
    for settings in candidates:
        whitening = {"pooling": settings.pooling, "shrinkage": settings.shrinkage}
        if whitening != fitted:
            transform = transforms.fit("whiten", problem.normals, **whitening)
            bank, rows = transform.apply(problem.normals), transform.apply(np.concatenate(groups))
            fitted = whitening
        near, _ = nearness.remember(
            bank,
            bank,
            np.ones(len(bank), bool),
            bank.shape[1:],
            transform.deviations if settings.views == 2 else None,
            (settings.bandwidth_neighbours, settings.clip),
            settings.terms,
            settings.margin,
        )
        scores = joined(partial(distances, nearness.filled(near), terms=settings.terms), rows, BATCH)
        normal, *others = np.split(scores, ends)
        found.append({kind: auroc(normal, scores) for kind, scores in zip(problem.abnormal, others)})
    return found


def auroc(normal: np.ndarray, abnormal: np.ndarray) -> float:
    """Of the scores of normals and of others."""
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    return metrics(labels, np.concatenate([normal, abnormal]))["auroc"]


class Selection:
    """Settings and what was measured with them: an AUROC for each set and kind."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = problems
        self.measured: dict[Settings, list[dict[str, float]]] = {}

    def criterion(self, settings: Settings) -> float:
        """The mean over kinds and sets of the pseudo-anomalies, or of that and the mean over labelled sets."""
        by_labels: dict[bool, list[float]] = defaultdict(list)
        for kinds in self.measured[settings]:
            by_labels[ANOMALIES in kinds].append(float(np.mean(list(kinds.values()))))
        return float(np.mean([np.mean(one) for one in by_labels.values()]))

    def best(self, candidates: Sequence[Settings], name: str) -> Settings:
        """The candidate of the highest criterion, the first of equals."""
        new = [settings for settings in candidates if settings not in self.measured]
        found = [separations(one, new) for one in bar(self.problems, desc=name, unit="set", disable=not new)]
        self.measured |= {settings: [kinds[i] for kinds in found] for i, settings in enumerate(new)}
        return max(candidates, key=self.criterion)

    def ascend(self) -> Settings:
        """The settings that no change of one constant improves, from the plain ones on."""
        before, settings = None, Settings()
        while settings != before:
            before = settings
            for factor in GRID:
                settings = self.best(along(settings, factor), factor)
        return settings


def along(settings: Settings, factor: str) -> list[Settings]:
    """The settings with each value of one constant."""
    return [Settings(**{**settings._asdict(), factor: value}) for value in GRID[factor]]


def markdown(selection: Selection, chosen: Settings) -> str:
    """What each constant does around the chosen settings, and these."""
    plain = selection.criterion(Settings())
    lines = [
        [factor, ", ".join(f"{v:g}: {selection.criterion(s):.4f}" for v, s in zip(GRID[factor], along(chosen, factor)))]
        for factor in GRID
    ]
    values = ", ".join(f"{factor} = {value:g}" for factor, value in chosen._asdict().items())
    named = f"chosen: {values} (criterion {selection.criterion(chosen):.4f}, of the plain method {plain:.4f}"
    table = grid(["constant", "criterion by value"], lines)
    return f"{table}\n{named}, {len(selection.problems)} sets)\n"


def write(selection: Selection, out: Path, text: str) -> None:
    """Writes selection.csv and selection.md."""
    kinds = list(dict.fromkeys(kind for one in selection.problems for kind in one.abnormal))
    rows = [
        [*settings, one.name, *(round(aurocs[kind], 6) if kind in aurocs else None for kind in kinds)]
        for settings, measured in selection.measured.items()
        for one, aurocs in zip(selection.problems, measured)
    ]
    write_atomically(out / "selection.csv", csv_files.lines([[*Settings._fields, "dataset", *kinds], *rows]))
    write_atomically(out / "selection.md", text.encode())


def main(_: list[str]) -> None:
    names = cli.chosen_rows(DATA_DIR.value, ROWS.value)
    others = cli.chosen_rows(LABELLED.value, flag="labelled") if LABELLED.value else []
    if {Path(name).name for name in names} & {Path(name).name for name in others}:
        raise InputError(f"--labelled: {LABELLED.value} holds sets of --data_dir, whose labels may not be read")
    Path(OUT.value).mkdir(parents=True, exist_ok=True)
    # No test row and no label of DATA_DIR goes beyond this line.
    problems = [of_normals(name, np.asarray(adbench(DATA_DIR.value, name).train)) for name in names]
    problems += [of_labels(adbench(LABELLED.value, name)) for name in others]
    selection = Selection(problems)
    chosen = selection.ascend()
    text = markdown(selection, chosen)
    write(selection, Path(OUT.value), text)
    print(f"{text}\nmeasurements: {Path(OUT.value) / 'selection.csv'}")


if __name__ == "__main__":
    cli.run(main)
