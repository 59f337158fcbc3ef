"""Data sets by name: what `config.data` can ask for. Every loader gives one or more one-class problems."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffad_jax.build import build
from diffad_jax.data.adbench import adbench, adbench_names
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.digits import digits
from diffad_jax.data.folders import class_folders, mvtec
from diffad_jax.data.npz_pictures import mnist_c, npz_classes, npz_classes_each, pictures
from diffad_jax.data.row_files import is_row_file
from diffad_jax.data.tfds_pictures import tfds_corrupted, tfds_pictures
from diffad_jax.errors import InputError
from diffad_jax.files import slug


def digits_each(anomalous_classes: Sequence[int] = tuple(range(10))) -> tuple[Dataset, ...]:
    """The digits problem with each of the classes in turn as the anomaly."""
    return tuple(digits(anomalous_class=c) for c in anomalous_classes)


def adbench_folder(
    path: str | Path, rows: Sequence[str] = (), protocol: str = "clean", seed: int = 0
) -> tuple[Dataset, ...]:
    """The ADBench sets named in `rows`, or all in the folder, or the one that is the file `path`; see `adbench.adbench`."""
    if Path(path).is_file() or (is_row_file(path) and not Path(path).exists()):
        if rows:
            raise InputError(f"config.data.rows: found {rows!r}, allowed with a file is none ({path})")
        return (adbench(path, None, protocol, seed, normals_alone=True),)
    if not (names := rows or adbench_names(path)):
        raise InputError(f"{path}: holds no .npz, allowed is a folder of those, or one .npz, .npy or .csv by its name")
    return tuple(adbench(path, name, protocol, seed, normals_alone=True) for name in names)


LOADERS: dict[str, Callable[..., Dataset | tuple[Dataset, ...]]] = {
    "adbench": adbench,
    "adbench_folder": adbench_folder,
    "class_folders": class_folders,
    "digits": digits,
    "digits_each": digits_each,
    "mnist_c": mnist_c,
    "mvtec": mvtec,
    "npz_classes": npz_classes,
    "npz_classes_each": npz_classes_each,
    "pictures": pictures,
    "tfds": tfds_pictures,
    "tfds_corrupted": tfds_corrupted,
}


def load(spec: Mapping[str, Any]) -> tuple[Dataset, ...]:
    """The data sets that `config.data` describes. Sets that share a training set share the array `train` itself.

    Raises InputError where there are none, or two of one name, which names their files (see `files.slug`) and results.
    """
    if spec.get("path") == "":
        raise InputError("config.data.path: found '', allowed is a file or folder")
    loaded = build("data", LOADERS, spec)
    sets = (loaded,) if isinstance(loaded, Dataset) else tuple(loaded)
    names = [dataset.name for dataset in sets]
    if not sets:
        raise InputError(f"config.data: {spec.get('path', spec['name'])} holds no data set")
    slugs = list(map(slug, names))
    if twice := sorted({name for name, of_file in zip(names, slugs) if slugs.count(of_file) > 1}):
        raise InputError(
            f"config.data: more than one set is named {', '.join(twice)}; choose between them by path or rows"
        )
    return sets
