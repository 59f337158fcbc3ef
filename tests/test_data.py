"""Readers and transforms: what trains, what is refused, what is fetched."""

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from diffad_jax import methods
from diffad_jax.data import dataset, npz, transforms
from diffad_jax.data.adbench import adbench, adbench_names
from diffad_jax.data.dataset import Chosen, Rows, fingerprint, one_class_split
from diffad_jax.data.digits import digits
from diffad_jax.data.npz_pictures import mnist_c, pictures
from diffad_jax.data.pictures import PictureFiles
from diffad_jax.data.row_files import labelled, read, unlabelled
from diffad_jax.errors import InputError


def table(n: int = 60, anomalies: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose first column is their index, so that every row can be traced; every sixth is an anomaly."""
    X = np.random.default_rng(0).normal(size=(n, 3))
    X[:, 0] = np.arange(n)
    y = np.zeros(n, int)
    y[np.arange(anomalies) * (n // anomalies)] = 1
    return X, y


def indices(rows: Rows) -> list[int]:
    return np.asarray(rows)[:, 0].astype(int).tolist()


def test_clean_split_is_the_first_half_of_the_normals_in_file_order() -> None:
    X, y = table()
    split = one_class_split(X, y, "t")
    normal = np.flatnonzero(y == 0).tolist()
    assert indices(split.train) == normal[:25]
    assert indices(split.test) == normal[25:] + np.flatnonzero(y).tolist()
    assert split.labels.tolist() == [0] * 25 + [1] * 10
    assert split.train.dtype == split.test.dtype == np.float32


@pytest.mark.parametrize("protocol", ["clean", "paper"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_seed_or_protocol_trains_on_an_anomaly(protocol: str, seed: int) -> None:
    X, y = table()
    split = one_class_split(X, y, "t", protocol=protocol, seed=seed)
    assert not y[indices(split.train)].any()
    assert y[indices(split.test)].tolist() == split.labels.tolist()
    assert len(split.train) + len(split.test) == (60 if protocol == "clean" else 1000)
    shared = set(indices(split.train)) & set(indices(split.test))
    assert bool(shared) == (protocol == "paper"), "clean must not leak; paper leaks by design"
    again = one_class_split(X, y, "t", protocol=protocol, seed=seed)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(split[1:], again[1:]))


def test_protocol_paper_draws_by_seed_and_thins_what_is_large() -> None:
    drawn = [one_class_split(*table(), "t", protocol="paper", seed=seed) for seed in (0, 1)]
    assert len({tuple(sorted(indices(split.train) + indices(split.test))) for split in drawn}) == 2
    X, y = np.arange(12_000.0)[:, None], np.arange(12_000) % 10 == 0
    thinned = one_class_split(X, y, "t", protocol="paper")
    kept = indices(thinned.train) + indices(thinned.test)
    assert len(kept) == len(set(kept)) == 10_000
    assert len(one_class_split(X, y, "t").train) == 5_400


def test_seeds_from_one_on_shuffle_the_normals() -> None:
    trains = [set(indices(one_class_split(*table(), "t", seed=seed).train)) for seed in (0, 1, 2)]
    assert trains[0] != trains[1] != trains[2]


def test_split_refuses_bad_tables_in_one_line_that_names_the_source() -> None:
    X, y = table()
    holed = X.copy()
    holed[[7, 9], 1] = np.nan, np.inf
    for bad_X, bad_y, message in [
        (holed, y, r"2 of 60 rows of X are not finite as float32 \(first: row 7\)"),
        (X * 1e39, y, "not finite as float32"),
        (X, y[:-1], r"y has shape \(59,\), X has 60 rows"),
        (X, y * 2, "labels 0, 2"),
        (X, y * 0, "labels 0, it must hold both"),
        (X[:, 0], y, r"X has shape \(60,\)"),
        (X.astype(str), y, "must be real numbers"),
        (X[:12], y[:12], "10 normal rows give 5 to train on"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            one_class_split(bad_X, bad_y, "t", source="file.npz")
        assert str(caught.value).startswith("file.npz: ") and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="protocol: found 'dirty'"):
        one_class_split(X, y, "t", protocol="dirty")


def test_where_there_are_normals_alone_all_train(tmp_path: Path) -> None:
    X, y = table()
    split = one_class_split(X, 0 * y, "t", normals_alone=True)
    assert indices(split.train) == list(range(60)) and len(split.test) == len(split.labels) == 0
    with pytest.raises(InputError, match="labels 0, it must hold both"):
        labelled(save(tmp_path / "normals.npz", X, 0 * y))


def test_a_fingerprint_tells_rows_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = table()
    found = fingerprint(X)
    assert found == fingerprint(X.astype(np.float64)) == fingerprint(Chosen(X, np.arange(60), X.dtype))
    assert len({found, fingerprint(X[::-1]), fingerprint(X[:-1]), fingerprint(X + 1)}) == 4
    many = np.zeros((10_000, 3))
    before = fingerprint(many)
    many[5_431, 1] = 1
    assert fingerprint(many) != before, "one value of many"
    monkeypatch.setattr(dataset, "CHUNK_VALUES", 300)
    many[5_431] = 0
    assert len({fingerprint(many), fingerprint(many + 1), before}) == 3, "a hundred rows"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_tables_stay_on_disk_and_split_as_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 7)).astype(dtype), rng.integers(2, size=300)
    save(tmp_path / "set.npz", y=y, X=X)
    small = adbench(tmp_path / "set.npz", seed=1)
    monkeypatch.setattr(npz, "MAPPED_BYTES", 1000)
    large = adbench(tmp_path / "set.npz", seed=1)
    assert isinstance(small.train, np.ndarray) and isinstance(large.train, dataset.Chosen)
    assert isinstance(large.train.rows, np.memmap) and not list(tmp_path.glob("*.npy"))
    for one, other in ((small.train, large.train), (small.test, large.test)):
        assert one.shape == other.shape and one.dtype == other.dtype == np.float32
        assert_array_equal(one, np.asarray(other))
        assert_array_equal(one[[3, 1]], other[np.array([3, 1])])
    assert_array_equal(small.labels, large.labels)
    for method in ("ours", "iforest"):
        scores = (methods.detect(method, data.train, data.test).scores for data in (small, large))
        assert_array_equal(*scores)

    # What is scored stays on disk too, until a batch is read.
    np.save(tmp_path / "new.npy", X)
    transform, new = transforms.fit("standardise", small.train), unlabelled(tmp_path / "new.npy")[0]
    assert not isinstance(transform.view(new), np.ndarray)
    assert_array_equal(np.asarray(transform.view(new)), transform.apply(X))
    np.save(tmp_path / "spoilt.npy", np.where(np.arange(300)[:, None] == 270, np.nan, X))
    with pytest.raises(InputError, match="1 of 300 rows .*row 270"):
        transform.view(unlabelled(tmp_path / "spoilt.npy")[0])

    X[5, 2] = np.inf
    save(tmp_path / "set.npz", y=y, X=X)
    with pytest.raises(InputError, match="1 of 300 rows of X are not finite"):
        adbench(tmp_path / "set.npz")
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"set\.npz: cannot be read as numbers"):
        adbench(tmp_path / "set.npz")


def test_archives_with_pickles_damage_or_labels_of_another_name_are_refused(tmp_path: Path) -> None:
    X, y = table()
    np.savez(tmp_path / "pickle.npz", X=np.array([{}], object), y=y)
    np.savez(tmp_path / "no_y.npz", X=X, labels=y)
    (tmp_path / "text.npz").write_text("hello")
    np.savez_compressed(tmp_path / "damaged.npz", X=X, y=y)
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "damaged.npz").write_bytes(content)
    for name, message in [
        ("pickle", "cannot be read as numbers"),
        ("no_y", "array y is missing"),
        ("absent", "no such file"),
        ("text", "not an .npz archive"),
        ("damaged", "cannot be read as numbers"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(caught.value)


def test_digits_select_classes_either_way() -> None:
    first = digits(anomalous_class=3)
    assert first.name == "digits_anomalous_3"
    assert first.train.shape == (807, 8, 8, 1) and first.labels.sum() == 183 and len(first.test) == 990
    assert set(np.unique(first.train)) == set(range(17))
    others = digits(normal_class=[0, 1, 2, 4, 5, 6, 7, 8, 9])
    assert np.array_equal(first.train, others.train) and np.array_equal(first.labels, others.labels)
    for arguments in [{}, {"anomalous_class": 1, "normal_class": 2}, {"normal_class": 10}, {"normal_class": range(10)}]:
        with pytest.raises(InputError, match="anomalous_class|normal_class"):
            digits(**arguments)  # type: ignore[arg-type]


def save(path: Path, X: np.ndarray, y: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, X=X, y=y)
    return path


def test_adbench_finds_sets_by_file_folder_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = table()
    file = save(tmp_path / "CV_by_ResNet18" / "CIFAR10_4.npz", X, y)
    save(tmp_path / "mine.npz", X + 1, y)
    assert adbench_names(tmp_path) == ["CV_by_ResNet18/CIFAR10_4", "mine"]
    monkeypatch.setenv("DIFFAD_DATA_DIR", str(tmp_path))
    expected = one_class_split(X, y, "CIFAR10_4")
    for found in [
        adbench(file),
        adbench(tmp_path, "CIFAR10_4"),
        adbench(tmp_path, "CV_by_ResNet18/CIFAR10_4"),
        adbench(name="CIFAR10_4"),
        adbench(file.parent, "CIFAR10_4.npz"),
    ]:
        assert found.name == "CIFAR10_4" and np.array_equal(found.train, expected.train)
    leaking = adbench(file, protocol="paper", seed=3)
    assert len(leaking.train) + len(leaking.test) == 1000
    save(tmp_path / "CV_by_ViT" / "CIFAR10_4.npz", X, y)
    with pytest.raises(InputError, match="ambiguous, say which of CV_by_ResNet18/CIFAR10_4, CV_by_ViT/CIFAR10_4"):
        adbench(tmp_path, "CIFAR10_4")
    with pytest.raises(InputError, match="holds no set 'nonsense'"):
        adbench(tmp_path, "nonsense")
    monkeypatch.delenv("DIFFAD_DATA_DIR")
    with pytest.raises(InputError, match="DIFFAD_DATA_DIR is not set"):
        adbench()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a local web server offers it."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_adbench_fetches_a_missing_set_and_keeps_only_the_true_bytes(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, url = served
    X, y = table()
    content = save(root / "CV_by_ViT" / "SVHN_3.npz", X, y).read_bytes()
    data = tmp_path / "data"
    folder = data / "CV_by_ViT"
    for place, name in [(data, "CV_by_ViT/SVHN_3"), (folder, "SVHN_3"), (folder / "SVHN_3.npz", None)]:
        with pytest.raises(InputError, match="git blob SHA-1 is [0-9a-f]{40}, expected [0-9a-f]{40}; nothing was kept"):
            adbench(place, name, base_url=url)
        assert not list(tmp_path.glob("data/**/*.*")), "altered bytes must leave no file behind"
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    monkeypatch.setitem(adbench.__globals__, "_blobs", lambda: {"CV_by_ViT/SVHN_3.npz": blob})
    move = os.replace

    def replace(partial: str, destination: Path) -> None:
        assert adbench_names(data) == [], "an unfinished file must not look like a set"
        move(partial, destination)

    monkeypatch.setattr(os, "replace", replace)
    fetched = adbench(folder, "SVHN_3", base_url=url)
    assert [file.name for file in folder.iterdir()] == ["SVHN_3.npz"]
    assert (folder / "SVHN_3.npz").read_bytes() == content
    # Once there, the set needs no network.
    assert np.array_equal(adbench(data, "SVHN_3", base_url="http://127.0.0.1:9").train, fetched.train)


def test_adbench_without_network_says_which_file_to_put_where(tmp_path: Path, served: tuple[Path, str]) -> None:
    _, url = served
    for base_url in (url, "http://127.0.0.1:9"):
        with pytest.raises(InputError) as caught:
            adbench(tmp_path / "data", "4_breastw", base_url=base_url)
        line = str(caught.value)
        assert f"{tmp_path / 'data' / 'Classical' / '4_breastw.npz'}: missing" in line
        assert f"{base_url}/Classical/4_breastw.npz cannot be fetched" in line and "\n" not in line
    assert not (tmp_path / "data").exists()


def stack(n: int = 60, shape: tuple[int, ...] = (5, 4)) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(1).integers(0, 256, (n, *shape), np.uint8), table(n)[1]


def test_pictures_get_a_channel_and_keep_their_values(tmp_path: Path) -> None:
    X, y = stack()
    split = pictures(save(tmp_path / "grey.npz", X, y))
    assert split.train.shape == (25, 5, 4, 1) and np.array_equal(np.asarray(split.train)[..., 0], X[y == 0][:25])
    assert pictures(save(tmp_path / "rgb.npz", *stack(shape=(5, 4, 3)))).test.shape == (35, 5, 4, 3)
    for name, bad in [("float", X / 255.0), ("channels_first", stack(shape=(3, 5, 4))[0])]:
        with pytest.raises(InputError, match=f"{name}.npz: X is .* expected uint8"):
            pictures(save(tmp_path / f"{name}.npz", bad, y))


def test_mnist_c_corruptions_share_one_training_set(tmp_path: Path) -> None:
    X, y = stack()
    for name in ("fog", "shear"):
        corrupted = X.copy()
        corrupted[y == 1] = len(name)
        save(tmp_path / f"{name}.npz", corrupted, y)
    fog, shear = mnist_c(tmp_path)
    assert (fog.name, shear.name) == ("fog", "shear") and fog.train is shear.train
    assert (fog.test[fog.labels == 1] == 3).all() and (shear.test[shear.labels == 1] == 5).all()
    assert [d.name for d in mnist_c(tmp_path, ["shear"])] == ["shear"]
    save(tmp_path / "other.npz", 255 - X, y)
    with pytest.raises(InputError, match="other.npz: its training digits differ"):
        mnist_c(tmp_path)


def test_labelled_reads_tables(tmp_path: Path) -> None:
    X, y = table()
    found_X, found_y, _ = labelled(save(tmp_path / "table.npz", X, y))
    assert np.array_equal(found_X, X.astype(np.float32)) and np.array_equal(found_y, y)


@pytest.mark.parametrize("mapped", [False, True])
def test_columns_too_fine_for_float32_keep_their_digits(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "MAPPED_BYTES", 64 if mapped else 1 << 29)
    X, y = table()
    X = np.asarray(X, np.float64) * 10
    if not mapped:
        assert labelled(save(tmp_path / "fine.npz", X, y))[0].dtype == np.float32
        constant = np.where(np.arange(X.shape[1]) == 2, 1.7e9, X)
        assert labelled(save(tmp_path / "constant.npz", constant, y))[0].dtype == np.float32
    stamped = X + np.where(np.arange(X.shape[1]) == 1, 1.7e9, 0)
    found, plain = (
        one_class_split(*labelled(save(tmp_path / f"{i}.npz", rows, y))[:2], "rows")
        for i, rows in enumerate((stamped, X))
    )
    for rows, expected in ((found.train, plain.train), (found.test, plain.test)):
        fitted, like = transforms.fit("standardise", found.train), transforms.fit("standardise", plain.train)
        np.testing.assert_allclose(fitted.apply(rows), like.apply(expected), atol=1e-4)
    # How far off anomalies are, makes normals no coarser.
    stamped[y == 1] *= 10
    assert one_class_split(stamped, y, "rows").train.dtype == np.float64


def test_columns_that_float32_would_round_stay_float64() -> None:
    X = 2.0**24 + 4 * np.random.default_rng(0).normal(size=(40, 1))  # of 2 from one float32 to the next
    assert dataset.checked(X, np.arange(40) % 2, "x")[0].dtype == np.float64


def test_the_first_bad_row_is_counted_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CHUNK_VALUES", 4)
    rows = np.zeros((10, 2))
    rows[[7, 9]] = np.nan
    assert dataset.nonfinite(rows).tolist() == [7, 9]


def test_fingerprints_tell_pictures_apart_by_name_size_and_content(tmp_path: Path) -> None:
    def found(folder: Path, **sizes: int) -> str:
        folder.mkdir(parents=True)
        for name, size in sizes.items():
            (folder / name).write_bytes(b"x" * size)
        return fingerprint(PictureFiles(sorted(folder.iterdir()), 8, 1, "crop"))

    first = found(tmp_path / "here" / "good", a=5, b=6)
    assert first == found(tmp_path / "there" / "good", a=5, b=6), "on another disk"
    others = {"c": dict(a=5, c=6), "longer": dict(a=5, b=7), "fewer": dict(a=5)}
    assert len({first, *(found(tmp_path / name / "good", **sizes) for name, sizes in others.items())}) == 4
    (tmp_path / "here" / "good" / "b").write_bytes(b"y" * 6)
    assert first != fingerprint(PictureFiles(sorted((tmp_path / "here" / "good").iterdir()), 8, 1, "crop"))


def test_fingerprints_tell_shapes_apart() -> None:
    two, three = (fingerprint(PictureFiles([Path("a.png")] * n, 8, 1, "crop")) for n in (2, 3))
    assert two != three
    assert fingerprint(np.ones((2, 6))) != fingerprint(np.ones((3, 4)))


def test_mapped_arrays_may_lie_column_by_column_but_hold_no_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "MAPPED_BYTES", 0)
    X = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    np.savez(tmp_path / "a.npz", X=X, y=np.arange(4))
    assert_array_equal(read(tmp_path / "a.npz")[0], X)
    np.savez(tmp_path / "b.npz", X=np.array([1, "a"], object), y=np.arange(2))
    with pytest.raises(InputError, match="b.npz: cannot be read as numbers .*pickled"):
        read(tmp_path / "b.npz")
