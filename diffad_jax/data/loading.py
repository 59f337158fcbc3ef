"""Data sets by name: what `config.data` can ask for. Every loader gives one or more one-class problems."""

from collections.abc import Callable, Mapping
from typing import Any

from diffad_jax.build import build
from diffad_jax.data.adbench import adbench, adbench_folder
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.digits import digits, digits_each
from diffad_jax.data.folders import class_folders, mvtec
from diffad_jax.data.npz_pictures import mnist_c, npz_classes, npz_classes_each, pictures
from diffad_jax.data.tfds_pictures import tfds_corrupted, tfds_pictures
from diffad_jax.errors import InputError
from diffad_jax.files import slug

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

    Raises InputError where there are none, or two of one file name (`files.slug`), by which their results are told apart.
    """
    if spec.get("path") == "":
        raise InputError("config.data.path: found '', allowed is a file or folder")
    loaded = build("data", LOADERS, spec)
    sets = (loaded,) if isinstance(loaded, Dataset) else tuple(loaded)
    if odd := [found for found in sets if not isinstance(found, Dataset)]:
        raise InputError(f"config.data.name: {spec['name']} gives {type(odd[0]).__name__}, needed are Datasets")
    names = [dataset.name for dataset in sets]
    if not sets:
        raise InputError(f"config.data: {spec.get('path', spec['name'])} holds no data set")
    slugs = list(map(slug, names))
    if twice := sorted({name for name, of_file in zip(names, slugs) if slugs.count(of_file) > 1}):
        raise InputError(
            f"config.data: sets have one file name, {', '.join(twice)}; choose between them by path or rows"
        )
    return sets
