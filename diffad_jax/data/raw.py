"""Raw pictures from `.npz` files and class folders, as values 0..255."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffad_jax.data.dataset import Dataset, checked, one_class_split, read_npz
from diffad_jax.data.pictures import PICTURE_SUFFIXES, header, read_picture
from diffad_jax.errors import InputError

NORMAL_FOLDERS = ("good", "normal", "0")


def pictures(path: str | Path, protocol: str = "clean", seed: int = 0) -> Dataset:
    """Read an `.npz` of raw pictures and split it one-class.

    X: uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3; y: [n], 0 normal, 1 anomaly. Returns float32 in 0..255.
    protocol and seed: see `dataset.one_class_split`. Raises InputError on any other content.
    """
    X, y = _read_pictures(path)
    return one_class_split(X, y, Path(path).stem, protocol=protocol, seed=seed, source=str(path))


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


def labelled(path: str | Path, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read labelled data on which to evaluate a trained model: (X float32 [n, D] or [n, H, W, C], y int [n]).

    path: an `.npz` with X and y (0 normal, 1 anomaly), or a folder whose sub-folders hold pictures: those named
    `good`, `normal` or `0` are normal, all others anomalous (MVTec-AD's `test` folder has this form). Pictures are
    values 0..255, with C = 1 when every file is greyscale, else 3, decoded as in `pictures.read_picture`; `size` stretches
    them to [size, size] pixels.
    Raises InputError on invalid data, an unreadable picture, or pictures of different sizes without `size`.
    """
    root = Path(path)
    if root.is_dir():
        return checked(*_read_folders(root, size), str(root))
    if size is not None:
        raise InputError(f"size: found {size} with {root}, allowed with a folder of pictures only")
    return checked(*read_npz(root), str(root))


def _read_pictures(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    X, y = read_npz(path)
    if X.dtype != np.uint8 or not (X.ndim == 3 or (X.ndim == 4 and X.shape[-1] in (1, 3))):
        raise InputError(f"{path}: X is {X.dtype} {X.shape}, expected uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3")
    return X, y


def _read_folders(root: Path, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(file for file in root.glob("*/*") if file.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise InputError(f"{root}: no pictures in its sub-folders ({', '.join(PICTURE_SUFFIXES)})")
    y = np.array([file.parent.name.lower() not in NORMAL_FOLDERS for file in files], np.int64)
    if y.all():
        raise InputError(f"{root}: no pictures in a sub-folder named {', '.join(NORMAL_FOLDERS)}")
    headers = [header(file) for file in files]
    for file, (_, pixels) in zip(files, headers):
        if size is None and pixels != headers[0][1]:
            raise InputError(f"{file}: {pixels} pixels, {files[0]} has {headers[0][1]}: give `size` to resize all")
    channels = 1 if all(grey for grey, _ in headers) else 3
    return np.stack([read_picture(file, channels, size, "stretch") for file in files]), y
