"""The distance from the nearest normal: what it compares, and what it adds to a run."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from brute import brute_nearest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from diffad_jax import detector, nearness, runs
from diffad_jax.calibration import Calibration, Near, typicality
from diffad_jax.data import transforms
from diffad_jax.data.dataset import evenly_spaced, one_class_split
from diffad_jax.data.digits import digits
from diffad_jax.evaluation import make_levels

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


def near_of(bank: np.ndarray, units: np.ndarray | None = None, **more: np.ndarray) -> Near:
    """Normals of one view, whose log distances are taken as they are."""
    units = np.ones(len(bank)) if units is None else units
    return Near(
        *(
            jnp.asarray(more.get(name, array), jnp.float32)
            for name, array in zip(Near._fields, (bank, np.ones((1, bank.shape[1])), units[None], [[0, 1]]))
        )
    )


def distances(near: Near, x: np.ndarray) -> np.ndarray:
    """exp of `nearness.distances`, which of `near_of` are the logarithms of distances."""
    return np.exp(np.asarray(nearness.distances(nearness.filled(near), jnp.asarray(x))))


def z(log: np.ndarray, usual: np.ndarray) -> np.ndarray:
    return (log - usual[..., 0]) / usual[..., 1]


def standardised(own: np.ndarray) -> np.ndarray:
    logs = np.log(own)
    return (logs - logs.mean()) / logs.std()


def test_pictures_are_compared_with_the_nearest_and_never_with_themselves() -> None:
    x = RNG.normal(size=(70, *PICTURES)).astype(np.float32)
    signatures = np.asarray(nearness.signature(jnp.asarray(x)))
    bank, new = signatures[:40], signatures[40:]
    assert_allclose(distances(near_of(bank), x[40:]), brute(new, bank).min(axis=1), rtol=1e-5)
    others = np.sort(brute(bank, bank), axis=1)[:, 1]
    again = bank * np.float32(1 + 1e-7)
    near, found = nearness.remember(bank, again, np.ones(40, bool), PICTURES, deviations=np.ones(6))
    assert_array_equal(near.bank, bank)
    assert near.weights.shape == (1, 6) and (near.units == 1).all(), "pictures have one unit and one view"
    assert_allclose(near.usual, [[np.log(others).mean(), np.log(others).std()]], rtol=1e-5)
    assert_allclose(found, standardised(others), atol=1e-4)
    # Of a bank that holds some of the normals those in it are not their own neighbours, and all others have all of it.
    members = np.arange(70) < 40
    _, found = nearness.remember(bank, signatures, members, PICTURES)
    assert_allclose(found, standardised(np.concatenate([others, brute(new, bank).min(axis=1)])), atol=1e-4)
    near, found = nearness.remember(bank[:1], bank[:1], np.array([True]), PICTURES)
    assert_array_equal(near.usual, [[0, 1]])
    assert found < -20, "a single normal has no other"
    assert nearness.most_rows((512,)) == nearness.MOST_ROWS > nearness.most_rows((224, 224, 3)) == 2**24 // 3072


def test_a_copied_normal_leaves_what_is_usual_as_it_was() -> None:
    bank = RNG.normal(size=(60, 6)).astype(np.float32)
    apart, _ = nearness.remember(bank, bank, np.ones(60, bool), PICTURES)
    bank[1] = bank[0]
    copied, found = nearness.remember(bank, bank, np.ones(60, bool), PICTURES)
    assert_array_equal(found[:4] < -20, [True, True, False, False])
    assert_allclose(copied.usual, apart.usual, rtol=0.1)
    # A copy of what the bank holds, but no member of it, is as near to it as a new copy would be.
    _, found = nearness.remember(bank, bank[10:20], np.zeros(10, bool), PICTURES)
    assert (found < -20).all()


def test_the_rounding_of_equal_distances_is_no_deviation() -> None:
    """Of all rows of eight switches each is as far from its nearest."""
    rows = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.float32)
    transform = transforms.fit("whiten", rows)
    bank = transform.apply(rows)
    near, found = nearness.remember(bank, bank, np.ones(256, bool), (8,), transform.deviations)
    assert_array_equal(near.usual[:, 1], 1)
    assert abs(found).max() < 1e-3
    moved = jnp.asarray(transform.apply(rows + 3))
    assert 0 < np.asarray(nearness.distances(near, moved)).min() < np.asarray(nearness.distances(near, moved)).max() < 9


def test_units_are_those_of_the_neighbourhood_within_bounds() -> None:
    draw = np.random.default_rng(0)
    bank = (draw.normal(size=(120, 3)) * np.exp(0.6 * draw.normal(size=(120, 1)))).astype(np.float32)
    groups = np.concatenate([bank, 200 + 30 * bank])
    for rows in (bank, groups):
        h = np.sqrt((brute_nearest(rows, rows, 4)[:, 1:] ** 2).mean(axis=1))
        m = np.repeat(np.median(h.reshape(-1, 120), axis=1), 120)
        assert_allclose(nearness.bandwidths(rows, 3, (1.5,))[0], np.clip(h, m / 1.5, 1.5 * m), rtol=1e-4)
        assert (h < m / 1.5).any() and (h > 1.5 * m).any(), "both bounds count"
    assert len(set(nearness.bandwidths(np.ones((10, 3), np.float32))[0])) == 1
    mostly = np.concatenate([np.zeros((30, 2)), RNG.normal(size=(9, 2))]).astype(np.float32)
    h = nearness.bandwidths(mostly, 10, (1.3, nearness.NO_BOUNDS))
    assert (h > 0).all() and np.isfinite(h).all()


def test_vectors_are_measured_in_the_units_of_each_neighbourhood() -> None:
    """By ten neighbours of six values each; none of them is a filler."""
    scale = np.repeat([[1.0], [1.5]], 20, axis=0)
    bank, new = (3 * scale + scale * RNG.normal(size=(40, 6)) for _ in range(2))
    bank, new = bank.astype(np.float32), new.astype(np.float32)
    units = nearness.bandwidths(bank)[0]
    assert units.max() > 1.3 * units.min()
    for offset in (0, 300):
        expected = brute_nearest(new, bank, 10, units).mean(axis=1)
        found = distances(near_of(bank + np.float32(offset), units), new + np.float32(offset))
        assert_allclose(found, expected, rtol=1e-3 if offset else 1e-5)
    for terms, k in ((30, 5), (1, 3), (300, 10)):
        found = nearness.distances(nearness.filled(near_of(bank, units)), jnp.asarray(new), terms)
        assert_allclose(np.exp(found), brute_nearest(new, bank, k, units).mean(axis=1), rtol=1e-5)
    # The rounding of another batch is small beside a row, and may be large beside its unit.
    close = (1 + 1e-3 * bank).astype(np.float32)
    again = close * np.float32(1 + 1e-7)
    near, found = nearness.remember(close, again, np.ones(40, bool), VECTORS)
    assert_allclose(near.units, nearness.bandwidths(close, 10, (1.3, nearness.NO_BOUNDS)), rtol=1e-6)
    bounded, free = (
        standardised(brute_nearest(close, close, 11, h)[:, 1:].mean(axis=1)) for h in np.asarray(near.units)
    )
    assert_allclose(found, np.maximum(bounded, free - nearness.MARGIN), atol=0.02)


def test_the_farthest_of_the_views_counts() -> None:
    """What whitening blows up hides the middle of a ring, and what it does not a broken correlation."""
    turn = np.linalg.qr(RNG.normal(size=(30, 30)))[0]

    def ring(count: int) -> np.ndarray:
        angle = RNG.uniform(0, 2 * np.pi, count)
        plane = np.c_[np.cos(angle), np.sin(angle), np.zeros((count, 28))]
        return plane @ turn + 0.1 * RNG.normal(size=(count, 30))

    def aurocs(train: np.ndarray, normal: np.ndarray, abnormal: np.ndarray) -> list[float]:
        transform = transforms.fit("whiten", train.astype(np.float32))
        bank, rows = (transform.apply(x.astype(np.float32)) for x in (train, np.concatenate([normal, abnormal])))
        labels, found = np.repeat([0, 1], [len(normal), len(abnormal)]), []
        for deviations in (None, transform.deviations):
            near, _ = nearness.remember(bank, bank, np.ones(len(bank), bool), bank.shape[1:], deviations)
            scores = np.asarray(nearness.distances(nearness.filled(near), jnp.asarray(rows)))
            assert np.isfinite(scores).all()
            found.append(roc_auc_score(labels, scores))
        # As the maximum of what each view says alone.
        assert transform.deviations is not None
        logs = [
            np.log(brute_nearest(rows * w, bank * w, 10, np.asarray(h)).mean(axis=1))
            for w, h in zip(np.asarray(near.weights), near.units)
        ]
        assert_allclose(np.max([z(log, np.asarray(u)) for log, u in zip(logs, near.usual)], axis=0), scores, atol=2e-3)
        return found

    alone, both = aurocs(ring(600), ring(300), 0.1 * RNG.normal(size=(200, 30)))
    assert alone < 0.6 < 0.85 < both
    correlated = np.sqrt(0.995) * RNG.normal(size=(800, 1)) + np.sqrt(0.005) * RNG.normal(size=(800, 30))
    broken = correlated[:200].copy()
    broken[:, 0] = RNG.permutation(broken[:, 0])
    alone, both = aurocs(correlated[200:600], correlated[600:], broken)
    assert alone > 0.9 and both > alone - 0.03


def test_what_lies_just_outside_a_dense_region_is_found_by_units_without_bounds() -> None:
    """Normals ever sparser along a line: at its dense end even anomalies are nearer than a bounded unit."""
    draw = np.random.default_rng(0)

    def drawn(count: int, further: float) -> np.ndarray:
        place = draw.uniform(size=(count, 1))
        return np.append(20 * place, further * 30**place / 30 * draw.normal(size=(count, 4)), axis=1).astype(np.float32)

    bank, rows = drawn(1000, 1), np.concatenate([drawn(400, 1), drawn(400, 2.5)])

    def auroc(margin: float) -> float:
        near, _ = nearness.remember(bank, bank, np.ones(1000, bool), (5,), margin=margin)
        return float(roc_auc_score(np.repeat([0, 1], 400), nearness.distances(near, jnp.asarray(rows))))

    assert auroc(np.inf) < 0.8 < 0.85 < auroc(nearness.MARGIN)


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_copies_are_at_distance_0_whatever_rounding_says(unit: float) -> None:
    """Ten copies of each row, and new ones that differ in the last bits; far from the origin, too."""
    rows = np.random.default_rng(1).normal(size=(400, 6)).astype(np.float32)
    bank, units = np.repeat(rows[:30], 10, axis=0), np.full(300, unit)
    known = rows[:30] * np.float32(1 + 1e-6)
    for usual in ([[0, 1]], [[2, 0.3]]):
        near = near_of(bank, units)._replace(usual=jnp.asarray(usual, jnp.float32))
        assert_array_equal(nearness.distances(near, jnp.asarray(known)), nearness.LEAST)
    far = rows + np.float32(3000)
    expected = brute_nearest(far[350:], far[:350], 10, np.ones(350)).mean(axis=1)
    assert_allclose(distances(near_of(far[:350]), far[350:]), expected, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_fewer_normals_than_neighbours_all_are_compared(count: int) -> None:
    bank, new = RNG.normal(size=(count, 6)).astype(np.float32), RNG.normal(size=(5, 6)).astype(np.float32)
    units = nearness.bandwidths(bank)[0]
    assert_allclose(distances(near_of(bank, units), new), (brute(new, bank) / units).mean(axis=1), rtol=1e-5)
    others = (brute(bank, bank) / units).sum(axis=1) / max(1, count - 1)
    near, found = nearness.remember(bank, bank, np.ones(count, bool), VECTORS)
    if count == 1:
        assert_array_equal(found, nearness.LEAST)
    else:
        assert_allclose(np.exp(found * near.usual[0, 1] + near.usual[0, 0]), others, rtol=1e-4)


def test_a_run_scores_vectors_by_their_nearest_normals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normals of two densities, a network that the score does not ask, a threshold that new normals respect."""

    def draw(count: int) -> np.ndarray:
        rows = RNG.normal(size=(count, 5)) * np.repeat([0.2, 2.0], count // 2)[:, None]
        return (rows + np.repeat([0.0, 8.0], count // 2)[:, None]).astype(np.float32)

    dataset = one_class_split(draw(300), np.zeros(300, int), "rows", normals_alone=True)
    config = tiny.get_config("rows")
    config.training.validation_rows, config.scoring.combination = 0.5, "nearest"
    config.scoring.calibration_rows = 150
    config.transform = {"name": "whiten"}
    runs.train(config, dataset, tmp_path / "all", progress=False)
    trained = detector.load(tmp_path / "all")
    transform, new = trained.statistics.transform, RNG.normal(size=(200, 5)).astype(np.float32) * 4
    bank, chosen = transform.apply(dataset.train[:]), evenly_spaced(300, 150)
    near, found = nearness.remember(bank, bank[chosen], np.ones(150, bool), (5,), transform.deviations)
    assert near.weights.shape == (3, 5)
    assert_allclose(trained.score(new), nearness.distances(near, jnp.asarray(transform.apply(new))), atol=1e-3)
    assert_allclose(trained.statistics.normal_scores, np.sort(found), atol=1e-3)
    # A bank that is thinned holds some of the normals that the threshold is of.
    monkeypatch.setattr(nearness, "MOST_ROWS", 100)
    runs.train(config, dataset, tmp_path / "thinned", progress=False)
    kept = evenly_spaced(300, 100)
    members = np.isin(chosen, kept)
    assert 0 < members.sum() < 150
    _, found = nearness.remember(bank[kept], bank[chosen], members, (5,), transform.deviations)
    assert_allclose(detector.load(tmp_path / "thinned").statistics.normal_scores, np.sort(found), atol=1e-3)
    assert (trained.score(draw(2000)) > trained.statistics.threshold).mean() == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize("held_out", [pytest.param(0, marks=pytest.mark.slow), 60])
def test_a_run_keeps_its_normals_and_finds_what_is_near_none(
    held_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine kinds of digit are normal: nearly every spectrum of errors is usual, which the tenth shows."""
    monkeypatch.setattr(nearness, "MOST_ROWS", 400)
    dataset, config = digits(anomalous_class=7), tiny.get_config()
    config.training.validation_rows = held_out
    config.score = {"name": "one_step", "times": (0.35, 0.46), "num_draws": 2, "bias": True}
    config.scoring.combination = "fisher"
    runs.train(config, dataset, tmp_path, progress=False)
    trained = detector.load(tmp_path)
    judge, transform = trained.statistics.judge, trained.statistics.transform
    assert isinstance(judge, Calibration) and judge.near.bank.shape == (400, 64)
    levels = make_levels(trained.system, trained.params, config.seed, 64)(transform.view(dataset.test))
    untypical = roc_auc_score(dataset.labels, typicality(judge, jnp.asarray(levels)))
    assert roc_auc_score(dataset.labels, trained.score(dataset.test)) > max(0.9, untypical + 0.05)

    known = np.asarray(nearness.signature(jnp.asarray(transform.apply(dataset.train))))
    assert brute(np.asarray(judge.near.bank), known).min(axis=1).max() < 1e-4
    assert len(np.unique(brute(np.asarray(judge.near.bank), known).argmin(axis=1))) == 400
