"""Raw pictures from `.npz` files, values 0 to 255: normals and anomalies, MNIST-C, and pictures of several classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffad_jax.data import row_files
from diffad_jax.data.classes import Classes, one_class_name, select_classes
from diffad_jax.data.dataset import Dataset, one_class_split
from diffad_jax.data.npz import read_arrays
from diffad_jax.errors import InputError, check_choice

SETTINGS = ("normal_class", "anomalous_class")


def pictures(path: str | Path, protocol: str = "clean", seed: int = 0) -> Dataset:
    """Read an `.npz` of raw pictures and split it one-class.

    X: uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3; y: [n], 0 normal, 1 anomaly, left out where all are normal. Returns
    float32 in 0..255.
    protocol and seed: see `dataset.one_class_split`. Raises InputError on any other content.
    """
    stored = row_files.read(path)
    _check_pictures(stored.X, f"{path}: X")
    labels, name = stored.labels(), Path(path).stem
    return one_class_split(stored.X, labels, name, protocol=protocol, seed=seed, source=str(path), normals_alone=True)


def mnist_c(path: str | Path, corruptions: Sequence[str] | None = None) -> tuple[Dataset, ...]:
    """Read MNIST-C (Mu and Gilmer 2019, arXiv:1906.02337), one Dataset a corruption, all sharing one `train` array.

    path: a folder with `<corruption>.npz`: X uint8 [n, 28, 28], y 0 for clean and 1 for corrupted digits.
    corruptions: the files to read, None for all in the folder. The first half of the clean digits trains.
    Raises InputError on a missing or invalid file, or when the files do not hold the same training digits, since one
    trained model could then not serve them all.
    """
    root = Path(path)
    names = sorted(file.stem for file in root.glob("*.npz")) if corruptions is None else list(corruptions)
    if not names:
        raise InputError(f"{root}: no corruption to read, expected <corruption>.npz files")
    sets = [pictures(root / f"{name}.npz") for name in names]
    for name, other in zip(names, sets):
        if not np.array_equal(other.train, sets[0].train):
            raise InputError(f"{root / name}.npz: its training digits differ from those of {names[0]}.npz")
    return tuple(other._replace(train=sets[0].train) for other in sets)


def npz_classes(
    path: str | Path, normal_class: Classes | None = None, anomalous_class: Classes | None = None
) -> Dataset:
    """Read raw pictures of several classes: the normals of x_train train, all of x_test tests.

    path: an `.npz` with x_train, x_test: uint8 [n, H, W] or [n, H, W, C], C = 1 or 3; y_train, y_test: int [n], 0 to K - 1;
    and, if it has them, the names of the classes: str [K]; else "0" to "K - 1". Pictures stay uint8; groups are the classes.
    normal_class (ADBench's reading) or anomalous_class (the paper's text): see `classes.class_setting`.
    Raises InputError on any other content, and as `select_classes` does.
    """
    return _npz_problem(Path(path), _read_classes(Path(path)), normal_class, anomalous_class)


def npz_classes_each(
    path: str | Path, setting: str = "normal_class", classes: Sequence[int | str] | None = None
) -> tuple[Dataset, ...]:
    """The problem of `npz_classes` with each class, or each of `classes`, in turn as the one that `setting` names.

    setting: "normal_class" or "anomalous_class". The problems share the array `test`. Raises InputError as `npz_classes`.
    """
    check_choice("setting", setting, SETTINGS)
    arrays = _read_classes(Path(path))
    chosen = arrays["classes"].tolist() if classes is None else classes
    return tuple(
        _npz_problem(Path(path), arrays, *((one, None) if setting == "normal_class" else (None, one))) for one in chosen
    )


def _npz_problem(
    path: Path, arrays: dict[str, np.ndarray], normal_class: Classes | None, anomalous_class: Classes | None
) -> Dataset:
    names: list[str] = arrays["classes"].tolist()
    try:
        rows, labels = select_classes(arrays["y_train"], arrays["y_test"], normal_class, anomalous_class, names)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    name = one_class_name(path.stem, normal_class, anomalous_class, names)
    return Dataset(name, arrays["x_train"][rows], arrays["x_test"], labels, groups=arrays["classes"][arrays["y_test"]])


def _read_classes(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"), ("classes",))
    for side in ("train", "test"):
        x, y = arrays[f"x_{side}"], arrays[f"y_{side}"]
        _check_pictures(x, f"{path}: x_{side}")
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
            raise InputError(f"{path}: y_{side} is {y.dtype} {y.shape}, expected int [{len(x)}]")
        arrays[f"x_{side}"] = x[..., None] if x.ndim == 3 else x
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise InputError(
            f"{path}: x_train holds pictures {arrays['x_train'].shape[1:]}, x_test {arrays['x_test'].shape[1:]}, "
            "they must agree"
        )
    y = np.concatenate([arrays["y_train"], arrays["y_test"]])
    names = arrays.setdefault("classes", np.arange(y.max() + 1).astype(str))
    if names.dtype.kind != "U" or names.ndim != 1 or y.min() < 0 or y.max() >= len(names):
        raise InputError(
            f"{path}: y spans {y.min()} to {y.max()}, classes is {names.dtype} {names.shape}, "
            "expected labels 0 to K - 1 and K names"
        )
    return arrays


def _check_pictures(x: np.ndarray, name: str) -> None:
    """Raises InputError, which begins with `name`, on what is no stack of pictures."""
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))) or 0 in x.shape:
        raise InputError(f"{name} is {x.dtype} {x.shape}, expected uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3")
