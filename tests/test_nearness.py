"""The distance from the nearest normal: what it compares, and what it adds to a run."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from brute import brute_nearest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from diffad_jax import detector, dte, nearness, neighbours, runs
from diffad_jax.calibration import Calibration, Near, calibrate
from diffad_jax.data.dataset import evenly_spaced, one_class_split
from diffad_jax.data.digits import digits

RNG = np.random.default_rng(0)


def brute(x: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None].astype(np.float64) - bank[None], axis=2)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 20, 3), (70, 40, 3)])
def test_a_picture_is_compared_whatever_its_brightness_and_contrast(shape: tuple[int, int, int]) -> None:
    x = 100 * RNG.normal(size=(5, *shape)).astype(np.float32)
    found = np.asarray(nearness.signature(jnp.asarray(x)))
    assert found.shape == (5, min(32, shape[0]) * min(32, shape[1]) * shape[2])
    assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    assert_allclose(found.std(axis=1), 1, rtol=1e-3)
    assert_allclose(nearness.signature(jnp.asarray(0.3 * x - 0.5)), found, atol=1e-3)
    faint = np.asarray(nearness.signature(jnp.asarray(1e-3 * (x - x.mean((1, 2, 3), keepdims=True)))))
    assert (faint.std(axis=1) < 0.7).all(), "the noise of an empty picture stays small"


def test_vectors_are_compared_as_they_are() -> None:
    rows = RNG.normal(size=(3, 7)).astype(np.float32)
    assert_array_equal(nearness.signature(jnp.asarray(rows)), rows)


PICTURES, VECTORS = (2, 3, 1), (6,)  # shapes of data whose signatures have 6 values


def distances(bank: np.ndarray, units: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.asarray(nearness.distances(*neighbours.filled(bank, units), jnp.asarray(vectors)))


def test_pictures_are_compared_with_the_nearest_and_never_with_themselves() -> None:
    x = RNG.normal(size=(70, *PICTURES)).astype(np.float32)
    signatures = np.asarray(nearness.signature(jnp.asarray(x)))
    bank, new, one = signatures[:40], signatures[40:], nearness.units_of(signatures[:40], PICTURES)
    expected = brute(new, bank).min(axis=1)
    assert_allclose(nearness.distances(jnp.asarray(bank), jnp.asarray(one), jnp.asarray(x[40:])), expected, rtol=1e-5)
    assert_allclose(nearness.distances_among(bank, one, new, np.zeros(30, bool), PICTURES), expected, rtol=1e-5)
    others = np.sort(brute(bank, bank), axis=1)[:, 1]
    again = bank[:10] * np.float32(1 + 1e-7)
    assert_allclose(nearness.distances_among(bank, one, again, np.ones(10, bool), PICTURES), others[:10], rtol=1e-5)
    assert nearness.distances_among(bank[:1], one[:1], bank[:1], np.array([True]), PICTURES) == 0, (
        "a single normal has no other"
    )
    # A copy of what the bank holds, but no member of it, is as near to it as a new copy would be.
    copies = nearness.distances_among(bank, one, bank[:10], np.zeros(10, bool), PICTURES)
    assert_array_equal(copies, 0)
    twice = np.concatenate([bank, bank[:3]])
    among = nearness.distances_among(twice, np.ones(43), twice, np.ones(43, bool), PICTURES)
    assert_array_equal(among[:5] == 0, [True] * 3 + [False] * 2)
    assert nearness.most_rows((512,)) == nearness.MOST_ROWS > nearness.most_rows((224, 224, 3)) == 2**24 // 3072


def test_vectors_are_measured_in_the_units_of_each_neighbourhood() -> None:
    """As `dte.adaptive` does, by ten neighbours of six values each; none of them is the row itself, or a filler."""
    scale = np.repeat([[1.0], [1.5]], 20, axis=0)
    bank, new = (3 * scale + scale * RNG.normal(size=(40, 6)) for _ in range(2))
    bank, new = bank.astype(np.float32), new.astype(np.float32)
    units = nearness.units_of(bank, VECTORS)
    assert_allclose(units, dte.bandwidths(bank))
    assert units.max() > 1.3 * units.min()
    for offset in (0, 300):
        expected = brute_nearest(new, bank, 10, units).mean(axis=1)
        found = distances(bank + np.float32(offset), units, new + np.float32(offset))
        assert_allclose(found, expected, rtol=1e-3 if offset else 1e-5)
    assert_allclose(dte.adaptive(new, bank, units), distances(bank, units, new), rtol=1e-5)
    assert_allclose(nearness.distances_among(bank, units, new, np.zeros(40, bool), VECTORS), expected, rtol=1e-5)
    # The rounding of another batch is small beside a row, and may be large beside its unit.
    close = (1 + 1e-3 * bank).astype(np.float32)
    units = nearness.units_of(close, VECTORS)
    others = brute_nearest(close, close, 11, units)[:, 1:].mean(axis=1)
    again = close[:10] * np.float32(1 + 1e-7)
    assert_allclose(nearness.distances_among(close, units, again, np.ones(10, bool), VECTORS), others[:10], rtol=1e-3)


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_copies_are_at_distance_0_whatever_rounding_says(unit: float) -> None:
    """Ten copies of each row, and new ones that differ in the last bits; far from the origin, too."""
    rows = np.random.default_rng(1).normal(size=(400, 6)).astype(np.float32)
    bank, units = np.repeat(rows[:30], 10, axis=0), np.full(300, unit)
    assert_array_equal(distances(bank, units, rows[:30] * np.float32(1 + 1e-6)), 0)
    far, ones = rows + np.float32(3000), np.ones(350)
    expected = brute_nearest(far[350:], far[:350], 10, ones).mean(axis=1)
    assert_allclose(distances(far[:350], ones, far[350:]), expected, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_fewer_normals_than_neighbours_all_are_compared(count: int) -> None:
    bank, new = RNG.normal(size=(count, 6)).astype(np.float32), RNG.normal(size=(5, 6)).astype(np.float32)
    units = nearness.units_of(bank, VECTORS)
    assert_allclose(distances(bank, units, new), (brute(new, bank) / units).mean(axis=1), rtol=1e-5)
    others = (brute(bank, bank) / units).sum(axis=1) / max(1, count - 1)
    assert_allclose(
        nearness.distances_among(bank, units, bank, np.ones(count, bool), VECTORS), others, rtol=1e-5, atol=1e-6
    )


def test_a_copied_normal_leaves_the_test_as_it_was() -> None:
    levels, bank = np.exp(RNG.normal(size=(3, 60))), RNG.normal(size=(60, 6)).astype(np.float32)

    def near() -> Near:
        return Near(bank, np.ones(60), nearness.distances_among(bank, np.ones(60), bank, np.ones(60, bool), PICTURES))

    apart = near()
    bank[1] = bank[0]
    copied = near()
    assert (copied.distances == 0).sum() == 2
    without, with_copy = (calibrate(levels, one).log_tests for one in (apart, copied))
    assert_allclose(with_copy[:, 1], without[:, 1], rtol=0.1)


def test_a_run_scores_vectors_by_their_nearest_normals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normals of two densities, a network that the score does not ask, a threshold that new normals respect."""
    rows = RNG.normal(size=(300, 5)) * np.repeat([0.2, 2.0], 150)[:, None] + np.repeat([0.0, 8.0], 150)[:, None]
    dataset = one_class_split(rows.astype(np.float32), np.zeros(300, int), "rows", normals_alone=True)
    config = tiny.get_config("rows")
    config.training.validation_rows, config.scoring.combination = 0.2, "nearest"
    runs.train(config, dataset, tmp_path / "all", progress=False)
    trained = detector.load(tmp_path / "all")
    bank = trained.statistics.transform.apply(dataset.train[:])
    units, new = dte.bandwidths(bank), RNG.normal(size=(200, 5)).astype(np.float32) * 4
    expected = brute_nearest(trained.statistics.transform.apply(new), bank, 10, units).mean(axis=1)
    assert_allclose(trained.score(new), expected, rtol=1e-4)
    others = brute_nearest(bank, bank, 11, units)[evenly_spaced(300, 60), 1:].mean(axis=1)
    assert_allclose(trained.statistics.normal_scores, np.sort(others), rtol=1e-4)
    again = RNG.normal(size=(2000, 5)) * np.repeat([0.2, 2.0], 1000)[:, None] + np.repeat([0.0, 8.0], 1000)[:, None]
    # Of a bank that holds some of the normals those in it are not their own neighbours, and all others have all of it.
    monkeypatch.setattr(nearness, "MOST_ROWS", 100)
    runs.train(config, dataset, tmp_path / "thinned", progress=False)
    kept, chosen = evenly_spaced(300, 100), evenly_spaced(300, 60)
    units = dte.bandwidths(bank[kept])
    found = brute_nearest(bank[chosen], bank[kept], 11, units)
    members = np.isin(chosen, kept)
    assert 0 < members.sum() < 60
    others = np.where(members, found[:, 1:].mean(axis=1), found[:, :10].mean(axis=1))
    thinned = detector.load(tmp_path / "thinned").statistics.normal_scores
    assert_allclose(thinned, np.sort(others), rtol=1e-4)
    assert (trained.score(again.astype(np.float32)) > trained.statistics.threshold).mean() == pytest.approx(
        0.05, abs=0.04
    )


@pytest.mark.parametrize("held_out", [0, 60])
def test_a_run_keeps_its_normals_and_finds_what_is_near_none(
    held_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine kinds of digit are normal: nearly every spectrum of errors is usual, which the tenth shows."""
    monkeypatch.setattr(nearness, "MOST_ROWS", 400)
    dataset, aurocs = digits(anomalous_class=7), {}
    for combination in ("typicality", "fisher"):
        config = tiny.get_config()
        config.training.validation_rows = held_out
        config.score = {"name": "one_step", "times": (0.35, 0.46), "num_draws": 2, "bias": True}
        config.scoring.combination = combination
        runs.train(config, dataset, tmp_path / combination, progress=False)
        trained = detector.load(tmp_path / combination)
        aurocs[combination] = roc_auc_score(dataset.labels, trained.score(dataset.test))
    assert aurocs["fisher"] > max(0.9, aurocs["typicality"] + 0.05)

    judge, transform = trained.statistics.judge, trained.statistics.transform
    assert isinstance(judge, Calibration) and judge.bank.shape == (400, 64)
    known = np.asarray(nearness.signature(jnp.asarray(transform.apply(dataset.train))))
    assert brute(np.asarray(judge.bank), known).min(axis=1).max() < 1e-4
    assert len(np.unique(brute(np.asarray(judge.bank), known).argmin(axis=1))) == 400
