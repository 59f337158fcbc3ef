"""Transforms: the maps, what they are fitted to, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.covariance import oas
from sklearn.preprocessing import StandardScaler

from diffad_jax.data import transforms, whitening
from diffad_jax.data.transform_kinds import KINDS
from diffad_jax.errors import InputError


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
    monkeypatch.setattr(whitening, "WIDE", 60 / few)
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

    Measurements also where they are skewed and their tails heavy; rare events, and what never varied, where columns are few
    or alike. Beside many that vary more and less, as activations do, what is rare counts for less.
    """
    generator = np.random.default_rng(0)
    vibration, rare = generator.normal(0.1, 0.05, 900), np.where(generator.random(900) < 0.02, 0.35, 0.0)

    def moved(column: np.ndarray, beside: int = 20, unit: float | np.ndarray = 1.0, fault: float = 0.6) -> float:
        temperatures = unit * generator.normal(0, 5, (900, beside))
        rows, off = np.c_[temperatures, column], np.eye(beside + 1)[beside] * fault
        transform = transforms.fit("whiten", rows[:450], shrinkage=0.3)
        wrong, normal = transform.apply(rows[450:] + off), transform.apply(rows[450:])
        return float(((wrong**2).sum(axis=1) > np.quantile((normal**2).sum(axis=1), 0.95)).mean())

    assert moved(vibration) > 0.95
    assert moved(generator.exponential(0.05, 900)) > 0.95
    assert moved(rare, unit=1.5) > 0.95 and moved(rare, unit=1e6) > 0.95
    assert moved(np.full(900, 3.0), unit=1e6, fault=1.0) > 0.95
    assert moved(rare, beside=120, unit=1.5) > 0.95
    assert moved(np.full(900, 3.0), beside=120, unit=1e-3, fault=0.06) > 0.95
    assert moved(rare, beside=120, unit=np.geomspace(0.5, 10, 120)) < 0.2


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
        transforms.fit("whiten", np.random.default_rng(0).normal(size=(20, 3)), shrinkage=True)


def test_a_column_of_one_value_keeps_its_scale() -> None:
    """0.1 is no sum of powers of 2: its deviation comes out as 1e-17."""
    X = np.random.default_rng(0).normal(size=(10, 2))
    X[:, 0] = 0.1
    assert transforms.fit("standardise", X).arrays["scale"][0] == 1
