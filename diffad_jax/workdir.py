"""The files of a run's directory: config.json, data.json, statistics.npz, metrics.json. Each appears whole or not at all."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffad_jax.calibration import Calibration
from diffad_jax.data.dataset import Dataset, fingerprint
from diffad_jax.data.npz import read_arrays
from diffad_jax.data.pipeline import Pipeline
from diffad_jax.data.transforms import Transform
from diffad_jax.errors import InputError
from diffad_jax.files import folder, read_json, save_json, save_npz
from diffad_jax.memory import Memory
from diffad_jax.nearness import NOT_ASKED, Near
from diffad_jax.settings import Scoring
from diffad_jax.training import Training


def as_json(config: ConfigDict) -> dict[str, Any]:
    """What config.json holds of a config."""
    found: dict[str, Any] = json.loads(config.to_json_best_effort())
    return found


def flatten(tree: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"config.a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}") if isinstance(value, Mapping) else {f"{prefix}.{key}": value}
    return flat


# A run may go on with other numbers of devices, split otherwise, which changes its results by rounding, and dropout's masks.
LAYOUT = (
    "config.mesh.",
    "config.parallel",
    "config.pipeline.workers",
    "config.pipeline.threads",
    "config.model.remat",
    "config.model.unroll",
)
DEFAULTS = flatten(
    {
        "training": Training._field_defaults,
        "scoring": Scoring._field_defaults,
        "pipeline": Pipeline._field_defaults,
    }
)


def save_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, and refuses a directory that holds a run of another config, naming the differing keys.

    Keys of LAYOUT may differ, and of training, scoring and pipeline a setting that is left out is its default.
    """
    claim(workdir / "config.json", as_json(config), "config", "work directory", _identity)


def _identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What of a flat config tells one run from another."""
    return {key: value for key, value in {**DEFAULTS, **flat}.items() if not key.startswith(LAYOUT)}


def save_data(workdir: Path, dataset: Dataset, rows: str) -> None:
    """Writes data.json, what tells the rows that are learnt, and refuses a directory whose run began on others.

    rows: the `fingerprint` of dataset.train.
    """
    told = {"name": dataset.name, "columns": list(dataset.columns), "rows": rows}
    claim(workdir / "data.json", told, "data", "work directory")


def claim(
    path: Path,
    value: Mapping[str, Any],
    name: str,
    directory: str,
    identity: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda flat: flat,
) -> None:
    """Writes `value`, called `name` in errors, as the JSON that tells whose the directory of `path` is.

    One that says so already is left alone, with its date. identity: what of the flat value counts; a number equals the word
    that shows it, as classes may be given either way.
    Raises InputError where another value holds it, naming the differing keys, and where it cannot be a `directory`.
    """
    with folder(path.parent, directory):
        if not path.exists():
            save_json(path, value)
        path.open("r+b").close()  # Raises where nothing can be written.
        there, asked = (identity(flatten(held, name)) for held in (read_json(path), value))

    def differs(key: str) -> bool:
        held, wanted = there.get(key), asked.get(key)
        return held != wanted and str(held) != str(wanted)

    differing = sorted(filter(differs, there.keys() | asked.keys()))
    if differing:
        shown = ", ".join(f"{key} ({there.get(key)!r} there, {asked.get(key)!r} asked)" for key in differing)
        raise InputError(f"{path}: holds another run's {name}, differing in {shown}; choose another {directory}")


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keeps other processes on this disk from training in a directory at the same time, until it is left or this one ends.

    Raises InputError where one trains there. Where the disk knows no locks, nothing is kept.
    """
    import fcntl  # here: Windows has none

    with folder(workdir, "work directory"):
        lock = (workdir / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{workdir}: another process trains here: wait for its end, choose another workdir, or, where a machine died "
                "with it, delete .lock"
            ) from error
        except OSError:
            pass
        yield


def load_config(workdir: Path) -> ConfigDict:
    """Reads config.json; raises InputError where there is none."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"{workdir}: holds no config.json, expected the work directory of experiments.train")
    return ConfigDict(read_json(path))


def check_finished(workdir: Path) -> None:
    """Raises InputError where there is no statistics.npz, with which a run's training ends."""
    if not (path := workdir / "statistics.npz").exists():
        raise InputError(f"{path}: missing; the run has not finished: repeat its experiments.train command")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was learnt of the training normals besides the parameters: transform, judge, threshold and counts.

    judge: see `evaluation.Judge`.
    normal_scores: [N], the scores of the normals that the judge was fitted on, each by a fit without it, sorted.
    dataset, rows: the name of the data set whose normals they were, and its training rows' `dataset.fingerprint`.
    columns: the names of its columns, none where it has no names.
    """

    transform: Transform
    judge: Calibration | Memory
    threshold: float
    normal_scores: np.ndarray
    facts: Mapping[str, float]
    dataset: str
    rows: str
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
        arrays |= {"rows": np.array(self.rows), "columns": np.array(self.columns, str)}
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
        if not {"normal_scores", "dataset", "rows", "columns"} <= stored.keys():
            raise useless("of an earlier version")
        groups: dict[str, dict[str, Any]] = {"transform": {}, "calibration": {}, "near": {}, "facts": {}}
        for key in stored:
            group, _, name = key.partition("/")
            if name and group not in groups:
                raise useless(f"of another version (it has {key})")
            if name:
                groups[group][name] = stored[key]
        facts = {key: float(value) for key, value in groups["facts"].items()}
        try:
            transform = Transform.from_arrays(groups["transform"])
        except InputError as error:
            raise useless(f"is damaged or of an earlier version ({error})") from error

        def built(kind: Any, arrays: Mapping[str, Any]) -> Any:
            if set(kind._fields) != arrays.keys():
                found, needed = ", ".join(arrays), ", ".join(kind._fields)
                raise useless(f"is damaged or of an earlier version (it has {found} of {needed})")
            return kind(**jax.tree.map(jnp.asarray, arrays))

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
            tuple(map(str, stored["columns"])),
        )
