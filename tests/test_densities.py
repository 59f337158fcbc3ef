"""Groups of different density are found where they are, and nowhere else."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from diffad_jax import nearness
from diffad_jax.densities import best_parts, groups
from diffad_jax.neighbours import knn

WIDTH = 32


def found(rows: np.ndarray, k: int = 10) -> np.ndarray:
    distances, places = knn(rows.astype(np.float32), rows.astype(np.float32), k + 1)
    return groups(np.sqrt((distances[:, 1:].astype(float) ** 2).mean(axis=1)), places, 1.3)


def drawn(
    seed: int, spreads: list[float], shares: list[float], count: int = 600, further: float = 1.0
) -> list[np.ndarray]:
    """Rows [N, WIDTH] of Gaussian groups, their centres a few spreads apart, and the group of each."""
    rng = np.random.default_rng(seed)
    group = rng.choice(len(spreads), count, p=shares)
    centres = 9 * max(spreads) * np.eye(len(spreads), WIDTH)
    return [centres[group] + further * np.array(spreads)[group][:, None] * rng.normal(size=(count, WIDTH)), group]


@pytest.mark.parametrize(
    "spreads, shares",
    [
        ([1, 2], [0.5, 0.5]),
        ([1, 20], [0.5, 0.5]),
        ([1, 3], [0.1, 0.9]),
        ([1, 3], [0.9, 0.1]),
        ([1, 2, 4, 8, 16], [0.2] * 5),
    ],
)
def test_groups_of_different_density_are_told_apart(spreads: list[float], shares: list[float]) -> None:
    rows, group = drawn(0, spreads, shares)
    assert (found(rows) == group).mean() > 0.98


def test_one_density_is_one_group_whatever_its_form() -> None:
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(500, 8))
    each = {
        "normal": normal,
        "uniform": rng.uniform(size=(500, 8)),
        "heavy tails": rng.standard_t(3, size=(500, 8)),
        "skewed": np.exp(normal),
        "ever sparser": normal * np.exp(rng.normal(size=(500, 1))),
        "groups of one density": normal + 20 * rng.integers(0, 3, (500, 1)),
        "a few far away": np.append(normal, 100 * rng.normal(size=(12, 8)), axis=0),
        "a grid": np.indices((20, 20)).reshape(2, -1).T,
        "copies": np.repeat(normal[:20], 20, axis=0),
        "two": normal[:2],
    }
    assert [name for name, rows in each.items() if found(rows, min(10, len(rows) - 1)).any()] == []


def test_copies_beside_another_group_are_of_the_densest() -> None:
    """Their density is not known, and moves no border."""
    rows, group = drawn(2, [1, 3], [0.5, 0.5])
    copied = np.append(rows, np.repeat(rows[:1], 50, axis=0), axis=0)
    assert_array_equal(found(copied)[600:], 0)
    apart = np.ones(600, bool)
    apart[0] = False
    assert (found(copied)[:600] == group)[apart].mean() > 0.98


def scores_of(bank: np.ndarray, *others: np.ndarray) -> np.ndarray:
    bank, *others = (rows.astype(np.float32) for rows in (bank, *others))
    near, _ = nearness.remember(bank, bank, np.ones(len(bank), bool), (WIDTH,))
    return np.asarray(nearness.distances(nearness.filled(near), jnp.asarray(np.concatenate(others))))


def test_what_is_a_copy_to_a_dense_group_is_none_to_another() -> None:
    """Of an idle sensor all rows are alike but for rounding; what lies around its other normals is told from them still."""
    (bank, _), (normal, _) = (drawn(seed, [1e-6, 1], [0.5, 0.5]) for seed in (3, 4))
    abnormal, group = drawn(5, [1e-6, 1], [0.5, 0.5], further=1.5)
    labels = np.repeat([0, 1], [600, group.sum()])
    assert roc_auc_score(labels, scores_of(bank, normal, abnormal[group == 1])) > 0.95


@pytest.mark.parametrize("spreads", [[1, 1], [1, 3], [1, 2, 4]])
def test_anomalies_of_each_group_are_found_by_its_own_unit(spreads: list[float]) -> None:
    """Around a dense group they are as near as normals of a sparse one; in one unit for all the AUROC is 0.79 and 0.70."""
    shares = [1 / len(spreads)] * len(spreads)
    bank, normal, abnormal = (
        drawn(seed, spreads, shares, count, further)[0]
        for seed, count, further in ((3, 600, 1), (4, 300, 1), (5, 300, 1.5))
    )
    assert roc_auc_score(np.repeat([0, 1], 300), scores_of(bank, normal, abnormal)) > 0.95


def test_the_best_parts_are_those_of_all_ways_to_cut() -> None:
    points = np.sort(np.random.default_rng(6).standard_t(2, size=11)) + 1e4

    def left(bounds: tuple[int, ...]) -> float:
        return float(sum(len(part) * part.var() for part in np.split(points, bounds[1:-1])))

    for k, (bounds, sum_of_squares) in enumerate(best_parts(points, 5), start=1):
        ways = [(0, *cuts, 11) for cuts in combinations(range(1, 11), k - 1)]
        assert tuple(bounds) == min(ways, key=left)
        assert sum_of_squares == pytest.approx(left(tuple(bounds)), rel=1e-6, abs=1e-9)
