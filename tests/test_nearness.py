"""The distance from the nearest normal: what it compares, and what it adds to a run."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from diffad_jax import detector, nearness, runs
from diffad_jax.calibration import Calibration, calibrate
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


def test_distances_are_those_from_the_nearest_and_never_from_oneself() -> None:
    bank, new = RNG.normal(size=(40, 6)).astype(np.float32), RNG.normal(size=(30, 6)).astype(np.float32)
    assert_allclose(nearness.distances(jnp.asarray(bank), jnp.asarray(new)), brute(new, bank).min(axis=1), rtol=1e-5)
    assert_allclose(nearness.distances_among(bank, new), brute(new, bank).min(axis=1), rtol=1e-5)
    others = np.sort(brute(bank, bank), axis=1)[:, 1]
    assert_allclose(nearness.distances_among(bank, bank[:10] * np.float32(1 + 1e-7)), others[:10], rtol=1e-5)
    assert nearness.distances_among(bank[:1], bank[:1]) == 0, "a single normal has no other"
    twice = np.concatenate([bank, bank[:3]])
    assert_array_equal(nearness.distances_among(twice, twice)[:5] == 0, [True] * 3 + [False] * 2)
    assert_allclose(
        nearness.distances(nearness.filled(jnp.asarray(bank + 300)), jnp.asarray(new + 300)),
        brute(new, bank).min(axis=1),
        rtol=1e-3,
    )
    assert nearness.most_rows((512,)) == nearness.MOST_ROWS > nearness.most_rows((224, 224, 3)) == 2**24 // 3072


def test_a_copied_normal_leaves_the_test_as_it_was() -> None:
    levels, bank = np.exp(RNG.normal(size=(3, 60))), RNG.normal(size=(60, 6)).astype(np.float32)
    apart = nearness.distances_among(bank, bank)
    bank[1] = bank[0]
    copied = nearness.distances_among(bank, bank)
    assert (copied == 0).sum() == 2
    without, with_copy = (calibrate(levels, bank, distances).log_tests for distances in (apart, copied))
    assert_allclose(with_copy[:, 1], without[:, 1], rtol=0.1)


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
