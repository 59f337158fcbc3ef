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
from sklearn.covariance import oas
from sklearn.preprocessing import StandardScaler

from diffad_jax import methods
from diffad_jax.data import dataset, npz, transform_kinds, transforms
from diffad_jax.data.adbench import adbench, adbench_names
from diffad_jax.data.dataset import Chosen, Rows, fingerprint, one_class_split
from diffad_jax.data.digits import digits
from diffad_jax.data.npz_pictures import mnist_c, pictures
from diffad_jax.data.pictures import PictureFiles
from diffad_jax.data.row_files import labelled, read, unlabelled
from diffad_jax.data.transform_kinds import KINDS
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


def test_range_maps_the_stated_interval_to_minus_one_to_one(tmp_path: Path) -> None:
    images = np.array([[[0.0]], [[255.0]], [[51.0]]])
    transform = transforms.fit("range", images, low=0, high=255)
    np.testing.assert_allclose(transform.apply(images).ravel(), [-1, 1, -0.6], rtol=1e-6)
    assert transform.apply(np.array([[[510.0]]])) == 3, "test values are not clipped"
    for other, ends in ((images / 255, "0 to 1"), (images / 127.5 - 1, "-1 to 1")):
        with pytest.raises(InputError, match=f"data from {ends}, the run has learnt values from 0 to 255"):
            transform.apply(other)
    assert (transform.apply(0 * images) == -1).all(), "black is a picture of any scale"
    assert transform.apply(np.float32([[[0.0]], [[1.0]]])).max() < -0.99, "and so is one all but black"
    dark = np.memmap(tmp_path / "pictures", np.float32, "w+", shape=(2, 1, 1))
    dark[:, 0, 0] = 255, 0.5
    np.testing.assert_allclose(transform.view(dark)[np.array([1])], 0.5 / 127.5 - 1, err_msg="or of pictures on disk")
    dark[0] = 0.2
    with pytest.raises(InputError, match="data from 0.2 to 0.5, the run has learnt values from 0 to 255"):
        transform.view(dark)
    with pytest.raises(InputError, match=r"low = 0, high = 1, but training values span \[0, 255\]"):
        transforms.fit("range", images, low=0, high=1)


@pytest.mark.parametrize("name", transforms.KINDS)
def test_bytes_are_mapped_as_the_same_numbers_in_float64(name: str) -> None:
    """In a precision of their own where it is no worse than float32's last bit."""
    pictures = np.random.default_rng(5).integers(0, 256, (40, 4, 4, 3), np.uint8)
    transform = transforms.fit(name, pictures, **({"low": 0, "high": 255} if name == "range" else {}))
    found = transform.apply(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, transform.apply(pictures.astype(np.float64)), rtol=2e-7, atol=1e-7)


@pytest.fixture
def wide() -> np.ndarray:
    """Fewer rows than columns, scales 1 to 1000, correlated, one constant column."""
    generator = np.random.default_rng(2)
    X = generator.normal(size=(40, 60)) @ generator.normal(size=(60, 60)) * np.geomspace(1, 1000, 60) + 5
    X[:, 10] = 0.1
    return X.astype(np.float32)


def test_standardise_is_that_of_scikit_learn_and_survives_constant_columns(wide: np.ndarray) -> None:
    found = transforms.fit("standardise", wide).apply(wide * 1.5)
    np.testing.assert_allclose(found, StandardScaler().fit(wide.astype(float)).transform(wide * 1.5), atol=1e-4)
    np.testing.assert_allclose(found[:, 10], 0.05, rtol=1e-5)


@pytest.mark.parametrize("few", [1, 41], ids=["by the covariance", "by the rows"])
def test_whiten_takes_the_oas_covariance_to_the_identity(
    few: int, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform_kinds, "WIDE", 60 / few)
    # Several chunks, the last one ragged: the bounded-memory sums must equal the plain ones.
    monkeypatch.setitem(transforms.chunks.__globals__, "CHUNK_VALUES", 60 * 7)
    rows = wide.astype(float)
    variance = rows.var(axis=0)
    variance[10] = 0.0  # The constant column.
    participation = variance.sum() ** 2 / (variance**2).sum()
    kurtosis = ((rows - rows.mean(axis=0)) ** 4).mean(axis=0) / np.where(variance > 0, variance**2, np.inf)
    light, common = (kurtosis < 5) & (variance > 0), np.median(variance[variance > 0])
    quartiles = np.quantile(rows, (0.25, 0.75), axis=0)
    light |= (variance > 0) & (quartiles[1] - quartiles[0] >= 0.6 * np.sqrt(variance))
    light |= np.where(variance > 0, variance, 1.0) < common / 100**2
    assert 0 < (3 * variance[light] < common).sum() < 59 and light[10]
    scale = np.sqrt(variance + 0.1 * participation * np.where(light, np.minimum(3 * variance, common), common))
    scale[10] = 1.0
    transform = transforms.fit("whiten", wide, pooling=0.1)
    matrix = transform.arrays["matrix"] * scale[:, None]
    np.testing.assert_allclose(matrix.T @ oas(rows / scale)[0] @ matrix, np.eye(60), atol=1e-8)
    np.testing.assert_allclose(transform.apply(wide), (rows - rows.mean(axis=0)) / scale @ matrix, atol=1e-4)
    # Leading components first, and a floor of 1 leaves nothing of the covariance but its trace.
    assert (np.diff((np.linalg.inv(matrix) ** 2).sum(axis=1)) <= 1e-9).all()
    spheres = transforms.fit("whiten", wide, pooling=0.1, shrinkage=1.0).arrays["matrix"] * scale[:, None]
    np.testing.assert_allclose(spheres @ spheres.T, np.eye(60) * (spheres @ spheres.T)[0, 0], atol=1e-9)


def test_a_column_in_a_small_unit_is_not_whitened_away() -> None:
    """Columns that vary by 0.05 beside temperatures, and go wrong by 12 deviations.

    Measurements also where they are skewed and their tails heavy; rare events, and what never varied, where columns are few.
    Of many columns what is rare is an activation, which counts for less.
    """
    generator = np.random.default_rng(0)
    vibration, rare = generator.normal(0.1, 0.05, 900), np.where(generator.random(900) < 0.02, 0.35, 0.0)

    def moved(column: np.ndarray, beside: int = 20, unit: float = 1.0, fault: float = 0.6) -> float:
        temperatures = unit * generator.normal(0, 5, (900, beside))
        rows, off = np.c_[temperatures, column], np.eye(beside + 1)[beside] * fault
        transform = transforms.fit("whiten", rows[:450], shrinkage=0.3)
        wrong, normal = transform.apply(rows[450:] + off), transform.apply(rows[450:])
        return float(((wrong**2).sum(axis=1) > np.quantile((normal**2).sum(axis=1), 0.95)).mean())

    assert moved(vibration) > 0.95
    assert moved(generator.exponential(0.05, 900)) > 0.95
    assert moved(rare, unit=1.5) > 0.95 and moved(rare, unit=1e6) > 0.95
    assert moved(np.full(900, 3.0), unit=1e6, fault=1.0) > 0.95
    assert moved(rare, beside=120, unit=1.5) < 0.2


@pytest.mark.parametrize("name", ["standardise", "whiten"])
def test_a_record_that_would_hold_all_deviation_is_left_out_with_a_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.random.default_rng(0).standard_t(3, size=(300, 6))
    spoilt = np.insert(rows, [200, 250, 250], -999, axis=0)
    with caplog.at_level("WARNING", "absl"):
        clean = transforms.fit(name, rows)
        assert not caplog.records
        found = transforms.fit(name, spoilt)
    assert "3 of 303 training rows lie so far off" in caplog.text and "(first: row 200)" in caplog.text
    for key, array in clean.arrays.items():
        np.testing.assert_allclose(found.arrays[key], array)


def test_whiten_standardises_mixed_units_and_keeps_common_ones() -> None:
    generator = np.random.default_rng(5)
    normal = generator.normal(size=(60, 20))
    mixed, common = normal * np.logspace(0, 6, 20), normal * generator.uniform(0.5, 2, 20)
    # Changing the unit of a column that is not the largest changes nothing when units are mixed: the map follows.
    other = mixed.copy()
    other[:, 3] *= 30
    a, b = (transforms.fit("whiten", x).apply(x) for x in (mixed, other))
    assert np.corrcoef((a**2).sum(axis=1), (b**2).sum(axis=1))[0, 1] > 0.9
    # Of 15 rows in 20 columns, where the whole of the shrinkage is given: the rotation is left out.
    unit = np.linalg.norm(transforms.fit("whiten", common[:15], shrinkage=1.0).arrays["matrix"], axis=1)
    assert unit.max() / unit.min() < 2


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.invert])
def test_the_inverse_inverts(name: str) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3, 2)) * [[1, 100], [0.1, 3], [7, 1]] + 500
    transform = transforms.fit(name, rows, **({"low": -900, "high": 2000} if name == "range" else {}))
    np.testing.assert_allclose(transform.invert(transform.apply(rows)), rows, rtol=1e-5)


def test_what_a_transform_does_not_keep_is_not_inverted() -> None:
    pictures = np.random.default_rng(0).normal(size=(9, 4, 4, 1))
    patches = pictures[:, :2, :2]
    assert transforms.fit("contrast", pictures).invert(pictures) is pictures
    assert transforms.fit("standardise", pictures).invert(patches) is patches
    np.testing.assert_allclose(
        transforms.fit("range", pictures, low=-9, high=9).invert(patches), 9 * patches, rtol=1e-6
    )


def test_whitened_normals_have_about_unit_covariance() -> None:
    generator = np.random.default_rng(3)
    # Directions with a variance far below the mean are shrunk, hence a mixing of moderate condition.
    mixing = np.eye(8) + 0.2 * generator.normal(size=(8, 8))
    train, fresh = (generator.normal(size=(4000, 8)) @ mixing + 3 for _ in range(2))
    whitened = transforms.fit("whiten", train).apply(fresh)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(8), atol=0.12)


@pytest.mark.parametrize("name", ["standardise", "whiten"])
def test_far_rows_stay_finite(name: str) -> None:
    rows = np.random.default_rng(6).normal(size=(30, 3)) * 1e-4
    transform = transforms.fit(name, rows)
    with np.errstate(over="raise"):
        found = transform.apply(np.array([[1e38, 1, -3e38], [0, 0, 0]]))
    assert np.isfinite(np.square(found).sum(axis=1)).all() and abs(found[0]).max() > 9e14 and abs(found[1]).max() < 9


def test_many_rows_are_hardly_shrunk_whatever_is_asked() -> None:
    generator = np.random.default_rng(4)
    # One factor behind all columns: OAS itself shrinks by less.
    rows = generator.normal(size=(50, 1)) * [1, 2, 3, 4] + 0.2 * generator.normal(size=(50, 4))
    asked = {
        share: transforms.fit("whiten", rows, pooling=0.0, shrinkage=share).arrays["matrix"] for share in (0.5, 1.0)
    }
    scaled = rows / rows.std(axis=0)
    shrunk = 0.92 * np.cov(scaled.T, bias=True) + 0.08 * np.eye(4)  # 4 / 50 of the unit matrix.
    for matrix in asked.values():
        whitened = matrix * rows.std(axis=0)[:, None]
        np.testing.assert_allclose(whitened.T @ shrunk @ whitened, np.eye(4), atol=1e-9)


def test_identical_normals_are_only_centred() -> None:
    same = np.full((20, 3), 0.1, np.float32)
    for name in ("standardise", "whiten"):
        np.testing.assert_allclose(transforms.fit(name, same).apply(same + 1), 1, rtol=1e-6)


def test_contrast_takes_exposure_away_and_leaves_the_noise_of_an_empty_picture_small() -> None:
    pictures = np.random.default_rng(0).normal(100, 20, (9, 8, 8, 1))
    transform = transforms.fit("contrast", pictures)
    found = transform.apply(pictures)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3)), 0.5, rtol=1e-5)
    np.testing.assert_allclose(transform.apply(0.3 * pictures + 7), found, atol=1e-5)
    empty = transform.apply(100 + 1e-3 * pictures)
    assert 0 < empty.std() < 0.01 and not transform.apply(np.ones((1, 8, 8, 1))).any()


def test_pictures_on_a_larger_scale_are_refused_and_values_far_off_are_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 6, 6, 1)).astype(np.float32)
    learnt = transforms.fit("range", pixels, low=0, high=255)
    with pytest.raises(InputError, match="data from 0 to 65535, the run has learnt values from 0 to 255"):
        learnt.apply(257 * pixels)
    hot = pixels.copy()
    hot[:, 0, 0] = 1e4
    assert learnt.apply(hot).max() > 70, "a pixel of each"
    assert learnt.apply(np.concatenate([pixels[:9], 257 * pixels[:8]])).max() > 500, "some of them"
    rows = transforms.fit("range", pixels.reshape(20, 36), low=0, high=255)
    assert rows.apply(np.full((1, 36), 1e5, np.float32)).min() > 700, "rows of columns"


def test_pictures_on_another_scale_are_refused_by_contrast_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 6, 6, 1)).astype(np.float32)
    learnt = transforms.fit("contrast", pixels)
    with pytest.raises(InputError, match="data from 0 to 1, the run has learnt values from 0 to 255"):
        learnt.apply(pixels / 255)
    learnt.apply(np.zeros_like(pixels)), learnt.apply(pixels % 2)
    signed = transforms.fit("contrast", pixels - 250)
    signed.apply(np.minimum(pixels - 250, 0.7))
    transforms.fit("contrast", np.full((9, 4, 4, 1), 0.5, np.float32)).apply(np.full((2, 4, 4, 1), 0.5, np.float32))
    small = transforms.fit("contrast", pixels / 255)
    assert_array_equal(small.apply(pixels[:3] / 255).shape, pixels[:3].shape)


def test_transforms_survive_savez(wide: np.ndarray, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "range": {"low": -1e5, "high": 1e5},
        "whiten": {"pooling": 0.3, "shrinkage": 0.3},
    }
    for name in KINDS:
        transform = transforms.fit(name, wide, **options.get(name, {}))
        np.savez(tmp_path / "t.npz", allow_pickle=False, **transform.to_arrays())
        with np.load(tmp_path / "t.npz", allow_pickle=False) as arrays:
            restored = transforms.Transform.from_arrays(arrays)
        assert restored.name == name and np.array_equal(restored.apply(wide), transform.apply(wide))
    with pytest.raises(InputError, match="expected name, shape and center, scale"):
        transforms.Transform.from_arrays({"name": np.array("range")})


def test_transforms_refuse_what_they_were_not_fitted_for(wide: np.ndarray) -> None:
    transform = transforms.fit("standardise", wide)
    holed = wide.copy()
    holed[4, 0] = np.nan
    for bad, message in [(wide[:, :5], r"\(40, 5\), allowed are numbers \[n, 60\]"), (holed, r"1 of 40 rows .* row 4")]:
        with pytest.raises(InputError, match=message):
            transform.apply(bad)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("zca", {}, "allowed are range, contrast, standardise, whiten"),
        ("whiten", {"l3": True}, "l3"),
        ("whiten", {"pooling": -1.0}, "pooling = -1.0, allowed are numbers from 0"),
        ("range", {"low": 0}, "high"),
    ]
    for name, options, message in cases:
        with pytest.raises(InputError, match=message):
            transforms.fit(name, wide, **options)


def test_true_is_no_number() -> None:
    with pytest.raises(InputError, match="config.transform.shrinkage: found True, allowed is a number"):
        transforms.fit("whiten", table()[0], shrinkage=True)


def test_a_column_of_one_value_keeps_its_scale() -> None:
    """0.1 is no sum of powers of 2: its deviation comes out as 1e-17."""
    X = np.random.default_rng(0).normal(size=(10, 2))
    X[:, 0] = 0.1
    assert transforms.fit("standardise", X).arrays["scale"][0] == 1


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
