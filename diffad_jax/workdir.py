"""Whose is a directory? Its config.json and data.json say so, and refuse another run; one process at a time writes there."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None  # type: ignore[assignment]

from diffad_jax.data.dataset import Dataset
from diffad_jax.data.pipeline import Pipeline
from diffad_jax.errors import InputError
from diffad_jax.files import folder, read_json, save_json
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
# Its data may have another place: data.json tells what they are.
PLACES = ("config.data.path", "config.data.data_dir")
LAYOUT = (
    *PLACES,
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


def save_place(workdir: Path, config: ConfigDict) -> None:
    """Notes in config.json where the data lie now: to be called when they are known to be those that the run has learnt."""
    held, data = read_json(workdir / "config.json"), as_json(config).get("data")
    if held.get("data") != data:
        save_json(workdir / "config.json", {**held, "data": data})


def _identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What of a flat config tells one run from another."""
    return {key: value for key, value in {**DEFAULTS, **flat}.items() if not key.startswith(LAYOUT)}


def save_data(workdir: Path, dataset: Dataset, rows: str) -> None:
    """Writes data.json, what tells the rows that are learnt, and refuses a directory whose run began on others.

    One that began without JAX's switch for float64 does not go on with it, nor the other way round.
    rows: the `fingerprint` of dataset.train.
    """
    told = {"name": dataset.name, "columns": list(dataset.columns), "rows": rows}
    if jax.config.read("jax_enable_x64"):
        told["computed in"] = "float64"
    claim(workdir / "data.json", told, "data", "work directory")


def claim(
    path: Path,
    value: Mapping[str, Any],
    name: str,
    directory: str,
    identity: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda flat: flat,
) -> None:
    """Writes `value`, called `name` in errors, as the JSON that tells whose the directory of `path` is.

    One that says so already is left alone. identity: what of the flat value counts; a number equals the word
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
def held(path: Path, value: Mapping[str, Any], name: str, directory: str) -> Iterator[None]:
    """The directory of `path`, for `value` and for this process alone: `claim` while `alone`, so that no other comes between.

    Raises InputError as both do.
    """
    with alone(path.parent, directory):
        claim(path, value, name, directory)
        yield


@contextmanager
def alone(directory: Path, kind: str = "folder") -> Iterator[None]:
    """Keeps other processes on this disk from writing to a directory at the same time, until it is left or this one ends.

    Raises InputError, which calls it a `kind`, where one does. Where disk or system know no such locks, nothing is kept.
    """
    with folder(directory, kind):
        lock = (directory / ".lock").open("w")
    if fcntl is None:
        lock.close()
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{directory}: another process works here: wait for its end, choose another directory, or, where a machine "
                "died with it, delete .lock"
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
