"""What a run has learnt of its normals besides parameters, and its file: statistics.npz, with which training ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffad_jax.calibration import Calibration
from diffad_jax.data.dataset import Dataset, fingerprint
from diffad_jax.data.npz import read_arrays
from diffad_jax.data.transforms import Transform
from diffad_jax.errors import InputError, first_line
from diffad_jax.files import save_npz
from diffad_jax.memory import Memory
from diffad_jax.nearness import NOT_ASKED, Near


def check_finished(workdir: Path) -> None:
    """Raises InputError where there is no statistics.npz, with which a run's training ends."""
    if not (path := workdir / "statistics.npz").exists():
        raise InputError(f"{path}: missing; the run has not finished: repeat its experiments.train command")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was learnt of the training normals besides the parameters: transform, judge, threshold and counts.

    judge: see `evaluation.Judge`.
    normal_scores: [N], sorted, the scores that set the threshold: those of the normals that the judge was fitted on, as if it
    had not seen them (`calibration.scores_of_normals`, `memory.remember`); with config.training.suspected those of suspects
    besides, and without as many of the highest as are suspected.
    dataset, rows: the name of the data set whose normals they were, and its training rows' `dataset.fingerprint`.
    usual: [9, D] of `reasons.usual_values` where data are rows, [0] where they are pictures.
    columns: the names of its columns, none where it has no names.
    """

    transform: Transform
    judge: Calibration | Memory
    threshold: float
    normal_scores: np.ndarray
    facts: Mapping[str, float]
    dataset: str
    rows: str
    usual: np.ndarray
    columns: tuple[str, ...] = ()

    def arranged(self, rows: np.ndarray, columns: Sequence[str], source: str) -> np.ndarray:
        """The rows [N, D] with their columns, if they are named, in the order in which they were learnt.

        Raises InputError, which begins with `source`, on names that were not learnt, and where one is missing.
        """
        if not columns or not self.columns:
            return rows
        for names, others, what in ((columns, self.columns, "has a"), (self.columns, columns, "has no")):
            if odd := [name for name in names if name not in others]:
                raise InputError(f"{source}: {what} column {odd[0]!r}, the run has learnt {', '.join(self.columns)}")
        return rows if tuple(columns) == self.columns else rows[:, [columns.index(name) for name in self.columns]]

    def check_trained_on(self, dataset: Dataset, run: str) -> None:
        """Raises InputError, which begins with `run`, on a data set of another name or with other training rows."""
        if dataset.name != self.dataset:
            raise InputError(f"{run}: was trained on {self.dataset}, not on {dataset.name}; choose another workdir")
        if dataset.columns and self.columns and dataset.columns != self.columns:
            raise InputError(
                f"{run}: was trained on the columns {', '.join(self.columns)}; found {', '.join(dataset.columns)}"
            )
        if fingerprint(dataset.train) != self.rows:
            raise InputError(
                f"{run}: was trained on other rows of {dataset.name} than those that there are now; put them back, or "
                "choose another workdir"
            )

    def save(self, workdir: Path) -> None:
        """Writes statistics.npz."""
        arrays = {f"transform/{key}": value for key, value in self.transform.to_arrays().items()}
        judge = self.judge._asdict()
        arrays |= {f"near/{key}": np.asarray(value) for key, value in judge.pop("near", NOT_ASKED)._asdict().items()}
        arrays |= {f"calibration/{key}": np.asarray(value) for key, value in judge.items()}
        arrays |= {f"facts/{key}": np.asarray(value) for key, value in self.facts.items()}
        arrays |= {"normal_scores": self.normal_scores, "dataset": np.array(self.dataset)}
        arrays |= {"rows": np.array(self.rows), "columns": np.array(self.columns, str), "usual": self.usual}
        save_npz(workdir / "statistics.npz", {**arrays, "threshold": np.array(self.threshold)})

    @classmethod
    def load(cls, workdir: Path) -> "Statistics":
        """Reads statistics.npz; raises InputError where it is damaged or the run has not finished training."""
        check_finished(workdir)
        path = workdir / "statistics.npz"

        def useless(why: str) -> InputError:
            return InputError(f"{path}: {why}; delete it and repeat the run's experiments.train command")

        try:
            stored = read_arrays(path, ("threshold",), None)
        except InputError as error:
            raise useless(f"is damaged ({str(error).removeprefix(f'{path}: ')})") from error
        if not {"normal_scores", "dataset", "rows", "columns", "usual"} <= stored.keys():
            raise useless("of an earlier version")
        groups: dict[str, dict[str, Any]] = {"transform": {}, "calibration": {}, "near": {}, "facts": {}}
        for key in stored:
            group, _, name = key.partition("/")
            if name and group not in groups:
                raise useless(f"of another version (it has {key})")
            if name:
                groups[group][name] = stored[key]
        try:
            facts = {key: float(value) for key, value in groups["facts"].items()}
            transform = Transform.from_arrays(groups["transform"])
        except (TypeError, ValueError) as error:
            raise useless(f"is damaged or of an earlier version ({error})") from error

        def built(kind: Any, arrays: Mapping[str, Any]) -> Any:
            if set(kind._fields) != arrays.keys():
                found, needed = ", ".join(arrays), ", ".join(kind._fields)
                raise useless(f"is damaged or of an earlier version (it has {found} of {needed})")
            try:
                return kind(**jax.tree.map(jnp.asarray, arrays))
            except TypeError as error:
                raise useless(f"is damaged ({first_line(error)})") from error

        judge = groups["calibration"]
        return cls(
            transform,
            built(Memory, judge)
            if "whitening" in judge
            else built(Calibration, judge | {"near": built(Near, groups["near"])}),
            float(stored["threshold"]),
            stored["normal_scores"],
            facts,
            str(stored["dataset"]),
            str(stored["rows"]),
            stored["usual"],
            tuple(map(str, stored["columns"])),
        )
