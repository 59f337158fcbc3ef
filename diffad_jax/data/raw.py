"""Raw pictures from `.npz` files, as values 0..255."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffad_jax.data import row_files
from diffad_jax.data.dataset import Dataset, one_class_split
from diffad_jax.errors import InputError


def pictures(path: str | Path, protocol: str = "clean", seed: int = 0) -> Dataset:
    """Read an `.npz` of raw pictures and split it one-class.

    X: uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3; y: [n], 0 normal, 1 anomaly, left out where all are normal. Returns
    float32 in 0..255.
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


def _read_pictures(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    stored = row_files.read(path)
    X = stored.X
    if X.dtype != np.uint8 or not (X.ndim == 3 or (X.ndim == 4 and X.shape[-1] in (1, 3))):
        raise InputError(f"{path}: X is {X.dtype} {X.shape}, expected uint8 [n, H, W] or [n, H, W, C] with C = 1 or 3")
    return X, stored.labels()
