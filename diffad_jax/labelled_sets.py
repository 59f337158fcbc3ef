"""The labelled data that a trained run is put to the test on: those of its own config, or any others of its kind."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from diffad_jax.data.dataset import Dataset, Rows
from diffad_jax.data.folders import labelled_folder
from diffad_jax.data.loading import load
from diffad_jax.data.pictures import PictureFiles
from diffad_jax.data.row_files import labelled
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.photos import as_trained, check_pictures
from diffad_jax.statistics import Statistics
from diffad_jax.workdir import load_config


class NothingToTest(InputError):
    """A run whose own data hold no anomaly, or no normal, to test on."""


labelled_once = lru_cache(maxsize=1)(labelled)  # a file, which the runs of one folder share


@lru_cache(maxsize=1)
def load_once(spec: str) -> tuple[Dataset, ...]:
    """The data sets of a config.data given as JSON, which the runs of one folder share."""
    return load(json.loads(spec))


def name_of(path: Path) -> str:
    """The name of other data; that of a folder may hold a dot."""
    return path.name if path.is_dir() else path.stem


def to_test(trained: Trained, other: Path | None = None, training: bool = True) -> list[Dataset]:
    """The data sets of the run's config that share its training set, or the one of `other`, a file or folder.

    training: whether the training set is wanted beside `other`; where not, it is not read, and is empty.
    Raises NothingToTest where the run's own are not of both kinds, and InputError where they are other data now, or `other`
    cannot be read.
    """
    if other and not training:
        return [_other(trained, other, np.empty((0, *trained.statistics.transform.shape), np.float32))]
    if "data" not in trained.config:
        raise InputError(
            "config.data: the run has none; give labelled data by --data, and --baselines= for no baselines"
        )
    try:
        own = load_once(trained.config.data.to_json(sort_keys=True))
    except InputError as error:
        raise InputError(
            f"{error} (these are the run's own data: where they have moved, repeat the run's experiments.train command with "
            "their place; --data with --baselines= does without them)"
        ) from error
    learnt = trained.trained_on(own)
    train = learnt.train
    if other:
        return [_other(trained, other, train)]
    if len(kinds := set(learnt.labels.tolist())) < 2:
        what = "normals alone" if kinds else "nothing"
        raise NothingToTest(
            f"config.data: {learnt.name} holds {what} to test on; give labelled data by --data, or see experiments.score"
        )
    return [dataset for dataset in own if dataset.train is train]


def _other(trained: Trained, path: Path, train: Rows) -> Dataset:
    """A file or folder as a data set; the pictures of a folder are read as those of the training set were."""
    if path.is_dir():
        files, labels = labelled_folder(path)
        return Dataset(name_of(path), train, as_trained(trained, files, PictureFiles), labels)
    X, y, columns = labelled_once(path)
    return Dataset(name_of(path), train, trained.statistics.arranged(X, columns, str(path)), y)


def check_other(path: Path, directory: Path) -> None:
    """Raises InputError where the data of `path` are not of the kind that the run in `directory` has learnt."""
    statistics = Statistics.load(directory)
    if path.is_dir():
        try:
            check_pictures(load_config(directory), statistics)
        except InputError as error:
            raise InputError(f"--data: {path} is a folder of pictures, and of {directory}: {error}") from error
        return
    X, _, columns = labelled_once(path)
    statistics.arranged(X[:0], columns, f"{path} for {directory}")
    if (found := X.shape[1:]) != (shape := tuple(statistics.transform.shape)):
        raise InputError(f"{path}: data of shape {found}, the run of {directory} has learnt {shape}")
