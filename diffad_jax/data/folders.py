"""Folders of pictures: MVTec-AD's layout, class folders and a plain folder."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffad_jax.data.classes import Classes, class_setting, one_class_name, select_classes
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.pictures import PICTURE_SUFFIXES, MaskFiles, PictureFiles, header, readable
from diffad_jax.errors import InputError

GOOD = "good"
NORMAL_FOLDERS = (GOOD, "normal", "0")


def picture_folder(path: str | Path) -> list[Path]:
    """The pictures of `pictures_and_others`."""
    return pictures_and_others(path)[0]


def pictures_and_others(path: str | Path) -> tuple[list[Path], Counter[str]]:
    """Every picture below a folder, sorted, and how many files are none, by suffix, both told by their names.

    Hidden files and folders are left out. Raises InputError when there is no such folder or it holds no picture.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root}: {'is a file' if root.exists() else 'no such folder'}, expected a folder of pictures")
    files, others = [], Counter[str]()
    for folder, names in _walk(root):
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(PICTURE_SUFFIXES):
                files.append(os.path.join(folder, name))
            else:
                others[Path(name).suffix.lower()] += 1
    if not files:
        raise InputError(f"{root}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return [Path(file) for file in sorted(files)], others


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of all folders that are not hidden, each once; what links lead to comes last."""
    own, seen = os.path.realpath(root), set[str]()
    waiting = [str(root)]
    while waiting:
        top = waiting.pop(0)
        if seen and Path(own).is_relative_to(os.path.realpath(top)):
            continue  # A link out of the root would lead to everything beside it.
        for folder, below, names in os.walk(top):
            if (place := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(place)
            below[:] = sorted(name for name in below if not name.startswith("."))
            waiting += filter(os.path.islink, (os.path.join(folder, name) for name in below))
            yield folder, names


def labelled_folder(path: str | Path) -> tuple[list[Path], np.ndarray]:
    """The pictures in the sub-folders of a folder, and y [n]: 0 in `good`, `normal` or `0`, 1 in any other.

    MVTec-AD's `test` folder has this form. Raises InputError where either kind is missing.
    """
    root = Path(path)
    files = [file for file in picture_folder(root) if file.parent != root]
    y = np.array([file.relative_to(root).parts[0].lower() not in NORMAL_FOLDERS for file in files], np.int64)
    if y.all() or not y.any():
        kinds = f"a sub-folder named {', '.join(NORMAL_FOLDERS)} (normal) and in one of another name (anomalous)"
        raise InputError(f"{root}: needs pictures in {kinds}")
    return files, y


def mvtec(
    path: str | Path,
    size: int,
    categories: str | Sequence[str] | None = None,
    fit: str = "stretch",
    channels: int | None = None,
    on_error: str = "fail",
) -> Dataset | tuple[Dataset, ...]:
    """Read MVTec-AD's layout: `train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>/<stem>_mask.png`.

    path: one category, or a folder of several, each of which gives a Dataset; `categories` chooses among those. A folder of
    pictures without any folder in it is one category of normals alone.
    Pictures are uint8 [N, size, size, C] and masks bool [M, size, size], both decoded when they are indexed; groups are
    the folders in `test`. Without `ground_truth` there are no masks; without `test` nothing can be tested.
    fit, on_error: see `pictures.read_picture` and `pictures.readable`.  channels: None means 1 when every training file is
    greyscale, else 3.
    Raises InputError on another layout, an empty folder, or a defect without a mask of the size of its picture.
    Source: Bergmann et al. 2019, "MVTec AD".
    """
    root = Path(path)
    if (root / "train" / GOOD).is_dir():
        if categories is not None:
            raise InputError(f"{root}: is one category; categories (found {categories}) go with a folder of several")
        return _mvtec_category(root, root / "train" / GOOD, size, fit, channels, on_error)
    if not root.is_dir():
        raise InputError(f"{root}: {'is a file' if root.exists() else 'no such folder'}, expected MVTec-AD's layout")
    found = sorted(folder.parent.parent.name for folder in root.glob(f"[!.]*/train/{GOOD}"))
    if not found:
        if not any(folder.is_dir() for folder in root.glob("[!.]*")):
            return _mvtec_category(root, root, size, fit, channels, on_error)
        alone = f"; for these normals alone give {root / GOOD}" if (root / GOOD).is_dir() else ""
        raise InputError(
            f"{root}: neither it nor its sub-folders hold train/{GOOD}, expected is MVTec-AD's layout, or pictures of normals"
            f" and no folders{alone}"
        )
    chosen = found if categories is None else [categories] if isinstance(categories, str) else categories
    if unknown := [name for name in chosen if name not in found]:
        raise InputError(f"categories: found {', '.join(unknown)}; {root} holds {', '.join(found)}")
    return tuple(
        _mvtec_category(root / name, root / name / "train" / GOOD, size, fit, channels, on_error) for name in chosen
    )


def _mvtec_category(root: Path, normals: Path, size: int, fit: str, channels: int | None, on_error: str) -> Dataset:
    """normals: the folder of the pictures that train."""
    test_folder, truth = root / "test", root / "ground_truth"
    defects = sorted(folder.name for folder in test_folder.glob("[!.]*") if folder.is_dir() and folder.name != GOOD)
    kinds = [GOOD, *defects] if test_folder.is_dir() else []
    train, *tests = _usable(
        [picture_folder(normals), *(picture_folder(test_folder / kind) for kind in kinds)], on_error
    )
    if channels is None:
        channels = 1 if all(header(file)[0] for file in train) else 3
    masks = [_masks(files, truth / kind) if kind != GOOD else [None] * len(files) for kind, files in zip(kinds, tests)]
    groups = np.repeat(np.array(kinds, str), [len(files) for files in tests])
    return Dataset(
        root.name,
        PictureFiles(train, size, channels, fit),
        PictureFiles([file for files in tests for file in files], size, channels, fit),
        (groups != GOOD).astype(np.int64),
        MaskFiles([file for files in masks for file in files], size, fit) if truth.is_dir() else None,
        groups,
    )


def _masks(files: Sequence[Path], folder: Path) -> list[Path | None]:
    """The mask of each picture."""
    if not folder.parent.is_dir():
        return []
    present = {file.stem: file for file in folder.glob("*_mask.*")}
    masks: list[Path | None] = []
    for file in files:
        mask = present.get(f"{file.stem}_mask")
        if mask is None:
            raise InputError(f"{file}: has no mask, expected {folder / file.stem}_mask.png")
        (width, height), expected = header(mask)[1], header(file)[1]
        if (width, height) != expected:
            raise InputError(f"{mask}: {width} x {height} pixels, its picture has {expected[0]} x {expected[1]}")
        masks.append(mask)
    return masks


def class_folders(
    path: str | Path,
    size: int,
    normal_class: Classes | None = None,
    anomalous_class: Classes | None = None,
    classes_file: str | Path | None = None,
    train: str = "train",
    test: str = "test",
    fit: str = "crop",
    channels: int = 3,
    on_error: str = "fail",
    seed: int = 0,
) -> Dataset:
    """Read pictures in one folder a class, as ImageNet, Mini- and Tiny ImageNet have them, at any depth below the class.

    path: either `<train>/<class>` and `<test>/<class>` (`val` where there is no `test`): the normals of train train, all of
    test tests; or `<class>` alone: the first half of each normal class trains, all others test. Then, as in
    `dataset.one_class_split`, seed 0 keeps the order of the files and each seed from 1 on shuffles them first, which a class
    whose files are sorted by what they show needs, lest train and test differ.
    normal_class or anomalous_class: exactly one, by name or by index; see `classes.class_setting`. Classes are the folders'
    names, sorted, or those in `classes_file` alone, one name a line, in its order.
    Pictures are uint8 [N, size, size, C], decoded when they are indexed; groups are the classes.
    fit, on_error: see `pictures.read_picture` and `pictures.readable`.
    Raises InputError on a missing or empty class, and as `select_classes` does.
    """
    if seed < 0:
        raise InputError(f"seed: found {seed}, allowed are integers from 0")
    root = Path(path)
    split = (root / train).is_dir()
    if split and test == "test" and not (root / test).is_dir():
        test = "val"
    sides = [root / train, root / test] if split else [root]
    names = _class_names(sides, classes_file)
    side, indices = class_setting(normal_class, anomalous_class, names)
    places = [[k for k, name in enumerate(names) if (one / name).is_dir()] for one in sides]
    found = iter(_usable([picture_folder(one / names[k]) for one, ks in zip(sides, places) for k in ks], on_error))
    parts = [{k: next(found) for k in ks} for ks in places]
    if not split:
        parts = _halved(parts[0], [k for k in places[0] if (k in indices) == (side == "normal")], seed)
    (train_files, train_classes), (test_files, test_classes) = map(_flat, parts)
    rows, labels = select_classes(train_classes, test_classes, normal_class, anomalous_class, names)
    return Dataset(
        one_class_name(root.name, normal_class, anomalous_class, names),
        PictureFiles([train_files[row] for row in rows], size, channels, fit),
        PictureFiles(test_files, size, channels, fit),
        labels,
        groups=np.array(names)[test_classes],
    )


def _class_names(sides: Sequence[Path], classes_file: str | Path | None) -> list[str]:
    """The classes to use: the folders found on any side, or those of them that a file lists."""
    for side in sides:
        if not side.is_dir():
            raise InputError(f"{side}: no such folder")
    found = sorted({folder.name for side in sides for folder in side.glob("[!.]*") if folder.is_dir()})
    if not found:
        raise InputError(f"{sides[0]}: holds no folders, expected one of pictures for each class")
    if classes_file is None:
        return found
    try:
        lines = Path(classes_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{classes_file}: cannot be read as a list of classes ({error})") from error
    listed = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if missing := [name for name in listed if name not in found]:
        raise InputError(f"{classes_file}: class {', '.join(missing)} has no folder in {', '.join(map(str, sides))}")
    return listed


def _usable(folders: Sequence[Sequence[Path]], on_error: str) -> list[list[Path]]:
    """The readable files of each folder; all are checked in one go, for one warning."""
    kept = set(readable([file for files in folders for file in files], on_error))
    usable = [[file for file in files if file in kept] for files in folders]
    for files, before in zip(usable, folders):
        if not files:
            raise InputError(f"{before[0].parent}: none of its {len(before)} pictures can be read")
    return usable


def _halved(files_of: dict[int, list[Path]], normal: Sequence[int], seed: int) -> list[dict[int, list[Path]]]:
    """[the first half of each normal class, all else]."""
    train, test, draw = {}, dict(files_of), np.random.default_rng(seed)
    for k in normal:
        files = [files_of[k][place] for place in draw.permutation(len(files_of[k]))] if seed else files_of[k]
        half = round(0.5 * len(files))
        train[k], test[k] = files[:half], files[half:]
    return [train, test]


def _flat(files_of: dict[int, list[Path]]) -> tuple[list[Path], np.ndarray]:
    """(files, class of each) of {class: files}."""
    classes = np.repeat(np.array(list(files_of), int), [len(files) for files in files_of.values()])
    return [file for files in files_of.values() for file in files], classes
