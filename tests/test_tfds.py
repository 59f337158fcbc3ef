"""Data sets of TFDS, from the small prepared folder that tests/data/make_tfds.py writes."""

import functools
import importlib.util
import json
import pickle
import runpy
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import CONTEXT, command

from diffad_jax.data.dataset import Dataset, Rows, fingerprint
from diffad_jax.data.loading import load
from diffad_jax.data.pictures import read_picture
from diffad_jax.data.tfds_pictures import tfds_corrupted, tfds_pictures
from diffad_jax.errors import InputError

FOLDER = Path(__file__).parent / "data" / "tfds"
CLEAN = "mnist_corrupted/identity"
WRITER = runpy.run_path(str(FOLDER.parent / "make_tfds.py"))


@functools.cache
def digits(start: int, stop: int, noise: float) -> list[tuple[bytes, int]]:
    return [(example["image"].tobytes(), example["label"]) for example in WRITER["digits"](start, stop, noise)]


def written(start: int, stop: int, noise: float, classes: Any = range(10)) -> Counter[bytes]:
    """The digits that were written, without order: TFDS shuffles."""
    return Counter(picture for picture, label in digits(start, stop, noise) if label in classes)


def read(rows: Rows | np.ndarray) -> Counter[bytes]:
    return Counter(picture.tobytes() for picture in np.asarray(rows))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "tfds"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("setting", "normal"),
    [
        ({"normal_class": 3}, {3}),
        ({"normal_class": ["1", 4]}, {1, 4}),
        ({"anomalous_class": "3"}, set(range(10)) - {3}),
        ({"anomalous_class": (0, 9)}, set(range(1, 9))),
    ],
)
def test_normals_of_train_train_and_all_of_test_tests(setting: dict[str, Any], normal: set[int]) -> None:
    (dataset,) = load({"name": "tfds", "dataset": CLEAN, "data_dir": str(FOLDER), **setting})
    assert dataset.groups is not None
    assert dataset.train.shape[1:] == dataset.test.shape[1:] == (28, 28, 1) and dataset.train.dtype == np.uint8
    assert read(dataset.train) == written(0, 100, 0, normal)
    assert read(dataset.test) == written(100, 150, 0)
    for digit in range(10):
        mine = dataset.groups == str(digit)
        assert read(np.asarray(dataset.test)[mine]) == written(100, 150, 0, {digit})
        assert (dataset.labels[mine] == (digit not in normal)).all()


def test_rows_are_read_by_slice_and_by_index_here_and_in_another_process() -> None:
    dataset = tfds_pictures(CLEAN, FOLDER, normal_class=[0, 1], train="train[:50%]")
    every = np.asarray(dataset.test)
    chosen = np.array([7, 0, 49, 7])
    assert len(dataset.test) == len(every) == 50 and 0 < len(dataset.train) < 20
    for rows in (dataset.test, pickle.loads(pickle.dumps(dataset.test))):
        np.testing.assert_array_equal(rows[10:30:3], every[10:30:3])
        np.testing.assert_array_equal(rows[chosen], every[chosen])
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        np.testing.assert_array_equal(pool.submit(without_tensorflow, dataset).result(), every)


def without_tensorflow(dataset: Dataset) -> np.ndarray:
    """The test pictures, read in a process where an import of TensorFlow fails, and loaded again there."""
    assert "tensorflow" not in sys.modules
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    again = tfds_pictures(CLEAN, FOLDER, normal_class=[0, 1])
    np.testing.assert_array_equal(np.asarray(again.test), np.asarray(dataset.test))
    return np.asarray(dataset.test)


def test_sizes_that_vary_and_a_test_split_without_labels() -> None:
    with pytest.raises(InputError, match="imagenet2012/1.0.0 train: its pictures vary in size, give `size`"):
        tfds_pictures("imagenet2012", FOLDER, normal_class="disk")
    dataset = tfds_pictures("imagenet2012", FOLDER, normal_class="disk", size=16)
    drawn = [(example["image"], example["label"]) for example in WRITER["drawings"](0, 45)]
    pictures = [(read_picture(file, 3, 16).tobytes(), label) for file, label in drawn]
    assert dataset.name == "imagenet2012_normal_disk" and dataset.train.shape == (10, 16, 16, 3)
    assert read(dataset.train) == Counter(picture for picture, label in pictures[:30] if label == 0)
    assert read(np.asarray(dataset.test)[dataset.labels == 1]) == Counter(p for p, label in pictures[30:] if label != 0)
    with pytest.raises(InputError, match=r"test\[:3\]: 3 of 3 pictures have no label"):
        tfds_pictures("imagenet2012", FOLDER, normal_class="disk", size=16, test="test[:3]")


def test_a_fingerprint_tells_other_pictures_from_as_many() -> None:
    first, other = (
        tfds_pictures(f"mnist_corrupted/{name}", FOLDER, normal_class=3, train="test")
        for name in ("identity", "shot_noise")
    )
    assert first.train.shape == other.train.shape
    assert fingerprint(first.train) == fingerprint(pickle.loads(pickle.dumps(first.train))) != fingerprint(other.train)


def test_validation_in_place_of_test(copied: Path) -> None:
    info = copied / "imagenet2012" / "1.0.0" / "dataset_info.json"
    edit(info, splits=[split for split in json.loads(info.read_text())["splits"] if split["name"] != "test"])
    assert len(tfds_pictures("imagenet2012", copied, anomalous_class="ring", size=8).test) == 15


def test_one_problem_a_corruption_and_one_train() -> None:
    sets = tfds_corrupted(["shot_noise", "identity"], FOLDER)
    (resized,) = load({"name": "tfds_corrupted", "corruptions": "shot_noise", "data_dir": str(FOLDER), "size": 14})
    dataset = sets[0]
    assert dataset.groups is not None
    assert dataset.name == "shot_noise" and dataset.train is sets[1].train and resized.test.shape == (100, 14, 14, 1)
    assert read(dataset.train) == written(0, 100, 0)
    pictures = np.asarray(dataset.test)
    assert read(pictures[dataset.labels == 0]) == read(pictures[dataset.groups == "identity"]) == written(100, 150, 0)
    assert (
        read(pictures[dataset.labels == 1]) == read(pictures[dataset.groups == "shot_noise"]) == written(100, 150, 60)
    )


def test_a_set_that_is_not_prepared_names_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "my sets"
    with pytest.raises(InputError) as raised:
        tfds_pictures("cifar10", folder, normal_class=0)
    assert str(raised.value) == (
        f"cifar10: not prepared in {folder}; run `python -m experiments.prepare --dataset cifar10 --data_dir '{folder}'`, "
        "which needs TensorFlow: pip install 'diffad_jax[prepare]'"
    )
    with pytest.raises(InputError, match="python -m experiments.prepare --dataset mnist_corrupted/fog --data_dir "):
        tfds_corrupted(["fog"], FOLDER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"normal_class": 3, "train": "training"},
            "1.0.0 training: no such split or an empty one, found are train, test",
        ),
        ({"normal_class": 3, "test": "test["}, r"test\[: no such split"),
        ({"normal_class": "three"}, "normal_class: found 'three'"),
        ({"normal_class": 3, "anomalous_class": 4}, "exactly one of normal_class"),
        ({"normal_class": 3, "test": "test[:0]"}, "no such split or an empty one"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tfds_pictures(CLEAN, FOLDER, **arguments)


def test_damaged_and_unsuitable_sets(copied: Path) -> None:
    folder = copied / "mnist_corrupted" / "identity" / "1.0.0"
    info, features = folder / "dataset_info.json", folder / "features.json"
    records, described = folder / "mnist_corrupted-test.array_record-00000-of-00001", features.read_text()

    def message() -> str:
        with pytest.raises(InputError) as raised:
            tfds_pictures(CLEAN, copied, normal_class=3)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    edit(features, featuresDict={"features": {"image": json.loads(described)["featuresDict"]["features"]["image"]}})
    assert message() == "mnist_corrupted/identity/1.0.0: allowed are sets of pictures with one class each"
    features.write_text(described)
    content = records.read_bytes()
    records.write_bytes(content[:70000])
    assert message().startswith("mnist_corrupted/identity/1.0.0 test: cannot be read, prepare it again (")
    records.unlink()
    assert "No such file" in message()
    edit(info, fileFormat="tfrecord")
    assert "1.0.0: prepared as tfrecord, needed is array_record; run `python -m experiments.prepare" in message()
    info.write_text("{")
    assert message().startswith(f"{CLEAN}: cannot be read from {copied}")


def test_a_picture_that_cannot_be_decoded_is_named() -> None:
    dataset = tfds_pictures(CLEAN, FOLDER, normal_class=3)
    split = dataset.test.splits[0]  # type: ignore[attr-defined]
    split.read = lambda rows: [{"image": b"no picture", "label": 3} for _ in rows]
    with pytest.raises(
        InputError, match="^mnist_corrupted/identity/1.0.0 test: example 5: cannot be read as a picture"
    ):
        dataset.test[5:6]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="would start a download")
def test_preparing_without_tensorflow(tmp_path: Path) -> None:
    ended = command("experiments.prepare", "--dataset=cifar10", f"--data_dir={tmp_path}/sets", output=tmp_path / "out")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: preparing a data set needs TensorFlow: pip install 'diffad_jax[prepare]'\n"
    assert not (tmp_path / "sets").exists()
