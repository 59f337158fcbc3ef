"""ADBench's labelled sets (Han et al. 2022, arXiv:2206.09426), read from disk or fetched once and verified."""

import csv
import hashlib
import http.client
import importlib.resources
import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from diffad_jax.data import row_files
from diffad_jax.data.dataset import Dataset, one_class_split
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically

COMMIT = "3dac8221081e190f157d78e93bfa8867f90d0965"
BASE_URL = f"https://raw.githubusercontent.com/Minqi824/ADBench/{COMMIT}/adbench/datasets"
DATA_DIR_VARIABLE = "DIFFAD_DATA_DIR"
TIMEOUT_SECONDS = 60.0


def adbench(
    path: str | Path | None = None,
    name: str | None = None,
    protocol: str = "clean",
    seed: int = 0,
    normals_alone: bool = False,
    *,
    base_url: str = BASE_URL,
) -> Dataset:
    """Read one ADBench set as rows [n, D] and split it one-class.

    path: an `.npz`, `.npy` or `.csv`, or a folder with `name` ("CIFAR10_4", or "CV_by_ResNet18/CIFAR10_4" where several
    folders hold that name); None means the folder in the environment variable DIFFAD_DATA_DIR. A set that is not there but
    belongs to ADBench (`adbench_blobs.csv`) is fetched from the pinned commit into that folder, and kept only if its
    git blob SHA-1 agrees. ADBench is BSD-2; the MVTec-derived sets are CC BY-NC-SA 4.0 (no commercial use).

    In CIFAR10_x, FashionMNIST_x and SVHN_x class x is the NORMAL class.
    protocol "clean" or "paper", seed and normals_alone: see `dataset.one_class_split`; "paper" LEAKS test rows into training.
    Raises InputError when the set is unknown, ambiguous, unreachable, altered or invalid.
    """
    if path is None and not (path := os.environ.get(DATA_DIR_VARIABLE)):
        raise InputError(f"path: none given and {DATA_DIR_VARIABLE} is not set, one of them must name the data folder")
    file = _locate(Path(path), name, base_url)
    stored = row_files.read(file)
    row_files.warn_of_odd_columns(stored, str(file))
    X, y, name, source = stored.X, stored.labels(), file.stem, str(file)
    found = one_class_split(X, y, name, protocol=protocol, seed=seed, source=source, normals_alone=normals_alone)
    return found._replace(columns=stored.columns)


def adbench_names(path: str | Path) -> list[str]:
    """List the `.npz` sets under a folder, sorted, as names that `adbench(path, name)` accepts.

    Raises InputError when `path` is no folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(
            f"{root}: {'is a file' if root.exists() else 'no such file or folder'}, expected a folder of .npz files"
        )
    return sorted(file.relative_to(root).as_posix().removesuffix(".npz") for file in root.rglob("*.npz"))


def _locate(path: Path, name: str | None, base_url: str) -> Path:
    """The local file of a set, fetched first if it is missing and known."""
    if name is None:
        if not row_files.is_row_file(path):
            raise InputError(
                f"{path}: is no .npz, .npy or .csv file, allowed is one, or a folder of .npz with the name of a set"
            )
        if path.is_file() or path.suffix != ".npz":
            return path
        root, name, missing = path.parent, path.stem, f"{path}: no such file"
    else:
        root, name = path, name.removesuffix(".npz")
        missing = f"{root}: holds no set {name!r}"
        if root.is_file():
            raise InputError(f"{root}: is a file; `name` ({name!r}) goes with a folder only")
        if (exact := root / f"{name}.npz").is_file():
            return exact
        found = [local for local in (adbench_names(root) if root.is_dir() else []) if local.endswith(f"/{name}")]
        if found:
            return root / f"{_only(found, name)}.npz"
    blobs = _blobs()
    # A folder of ADBench's own, such as .../CV_by_ResNet18, settles which of the sets of this name is meant.
    if root.name in {key.split("/")[0] for key in blobs}:
        root, name = root.parent, f"{root.name}/{name}"
    known = [key for key in blobs if f"/{key}".endswith(f"/{name}.npz")]
    if not known:
        raise InputError(f"{missing}, and ADBench has none of that name")
    key = _only(known, name)
    _fetch(f"{base_url}/{urllib.parse.quote(key)}", root / key, blobs[key])
    return root / key


def _only(candidates: list[str], name: str) -> str:
    if len(candidates) > 1:
        raise InputError(f"name: {name!r} is ambiguous, say which of {', '.join(candidates)}")
    return candidates[0]


def _blobs() -> dict[str, str]:
    """Path inside adbench/datasets -> git blob SHA-1, at the pinned commit."""
    with importlib.resources.files("diffad_jax.data").joinpath("adbench_blobs.csv").open(encoding="utf-8") as file:
        return {row["path"]: row["git_blob_sha1"] for row in csv.DictReader(file)}


def _fetch(url: str, destination: Path, blob_sha1: str) -> None:
    """Download to `destination`; only bytes of the expected git blob SHA-1 ever get that name."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{destination}: missing, and {url} cannot be fetched ({error}); download it elsewhere and put it there"
        ) from error
    found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if found != blob_sha1:
        raise InputError(f"{url}: git blob SHA-1 is {found}, expected {blob_sha1}; nothing was kept")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(destination, content)
    except OSError as error:
        raise InputError(f"{destination}: cannot be written ({error})") from error


def adbench_folder(
    path: str | Path, rows: Sequence[str] = (), protocol: str = "clean", seed: int = 0
) -> tuple[Dataset, ...]:
    """The ADBench sets named in `rows`, or all in the folder, or the one that is the file `path`; see `adbench`."""
    if Path(path).is_file() or (row_files.is_row_file(path) and not Path(path).exists()):
        if rows:
            raise InputError(f"config.data.rows: found {rows!r}, allowed with a file is none ({path})")
        return (adbench(path, None, protocol, seed, normals_alone=True),)
    if not (names := rows or adbench_names(path)):
        raise InputError(f"{path}: holds no .npz, allowed is a folder of those, or one .npz, .npy or .csv by its name")
    return tuple(adbench(path, name, protocol, seed, normals_alone=True) for name in names)
