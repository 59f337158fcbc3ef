"""Raw pictures from `.npz` files, as values 0..255."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffad_jax.data.dataset import Dataset, checked, one_class_split
from diffad_jax.data.npz import read_arrays, read_npz
from diffad_jax.errors import InputError, first_line


def pictures(path: str | Path, protocol: str = "clean", seed: int = 0) -> Dataset:
    """Read an `.npz` of raw pictures and split it one-class.

    X: uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3; y: [n], 0 normal, 1 anomaly. Returns float32 in 0..255.
    protocol and seed: see `dataset.one_class_split`. Raises InputError on any other content.
    """
    X, y = _read_pictures(path)
    return one_class_split(X, y, Path(path).stem, protocol=protocol, seed=seed, source=str(path), normals_alone=True)


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


def labelled(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read labelled data on which to evaluate a trained model: (X float32 [n, D] or [n, H, W, C], y int [n]).

    path: an `.npz` with X and y (0 normal, 1 anomaly); pictures are values 0..255. Raises InputError on invalid data.
    """
    return checked(*read_npz(path), str(path))


def unlabelled(path: str | Path) -> np.ndarray:
    """Read data to score: the array X of an `.npz` file or that of an `.npy` file, [n, D], [n, H, W] (gets C = 1) or
    [n, H, W, C], as stored.

    Raises InputError where the file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        try:
            X = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as numbers ({first_line(error)})") from error
    else:
        X = read_arrays(path, ("X",))["X"]
    return X[..., None] if X.ndim == 3 else X


def _read_pictures(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    X, y = read_npz(path)
    if X.dtype != np.uint8 or not (X.ndim == 3 or (X.ndim == 4 and X.shape[-1] in (1, 3))):
        raise InputError(f"{path}: X is {X.dtype} {X.shape}, expected uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3")
    return X, y
