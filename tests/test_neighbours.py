"""Nearest neighbours against scikit-learn and brute force, where float32 makes them hard to tell."""

import jax.numpy as jnp
import numpy as np
import pytest
from brute import brute_nearest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

from diffad_jax.errors import InputError
from diffad_jax.neighbours import knn_distances, nearest, smallest

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(40, 3), (1500, 3), (9000, 3), (300, 80)])
def test_neighbours_are_those_of_scikit_learn_at_any_size(shape: tuple[int, int]) -> None:
    bank, x = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=(600, shape[1])).astype(np.float32)
    expected = NearestNeighbors(n_neighbors=4).fit(bank).kneighbors(x)[0]
    assert_allclose(knn_distances(x, bank, 4), expected, rtol=1e-4)
    units = RNG.uniform(0.5, 2, len(bank))
    assert_allclose(knn_distances(x, bank, 4, units), brute_nearest(x, bank, 4, units), rtol=1e-4)
    # A datum's score is its own, wherever the batches are cut.
    assert_array_equal(knn_distances(x[500:], bank, 4), knn_distances(x, bank, 4)[500:])
    with pytest.raises(InputError, match="k: found 41"):
        knn_distances(x, bank[:40], 41)


def test_the_smallest_are_those_of_a_stable_sort() -> None:
    """Of few values, so that most are equal to others, some infinite; in groups and, of a length of none, without."""
    for count, k in [(6400, 16), (4096, 32), (4000, 16), (100, 5)]:
        values = RNG.integers(0, RNG.integers(10, 3000, (20, 1)), (20, count)).astype(np.float32)
        values[values == 0], values[3] = np.inf, 7
        order = np.argsort(values, axis=1, kind="stable")[:, :k]
        found, places = smallest(jnp.asarray(values), k)
        assert_array_equal(places, order)
        assert_array_equal(found, np.take_along_axis(values, order, axis=1))


def test_rows_keep_their_order_where_they_are_compared_in_tiles() -> None:
    bank, x = RNG.normal(size=(8192, 3)).astype(np.float32), RNG.normal(size=(301, 3)).astype(np.float32)
    found, places = nearest(jnp.asarray(x), jnp.asarray(bank), jnp.ones(len(bank)), 3)
    assert_allclose(found, brute_nearest(x, bank, 3), rtol=1e-4)
    assert_allclose(np.linalg.norm(x[:, None] - bank[places], axis=2), found, rtol=1e-6)


def test_the_nearest_is_found_where_squares_lose_its_digits() -> None:
    """Two groups far apart, so that no middle is near them: among a group's rows the quick distances are noise."""
    side = np.where(np.arange(16) % 2, 1e3, -1e3)[:, None]
    bank = (side + 0.01 * RNG.normal(size=(16, 4))).astype(np.float32)
    x = (side + 0.01 * RNG.normal(size=(16, 4))).astype(np.float32)
    assert_allclose(knn_distances(x, bank, 1), brute_nearest(x, bank, 1), atol=2e-4)
    many = (np.repeat(side, 30, axis=0) + 0.01 * RNG.normal(size=(480, 4))).astype(np.float32)
    found, least = knn_distances(x, many, 1), brute_nearest(x, many, 1)
    assert (found >= least - 2e-4).all() and (found**2 <= least**2 + 1e-6 * (x**2).sum(1)[:, None]).all()


def test_copies_far_from_the_origin_are_at_distance_0() -> None:
    bank = (RNG.normal(size=(50, 4)) + 1000).astype(np.float32)
    assert_array_equal(knn_distances(bank, bank, 1), 0)


def test_distances_far_from_the_origin_are_those_near_it() -> None:
    bank = 1e-3 * np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    near = knn_distances(bank[:100], bank, 5)
    far = knn_distances(bank[:100] + np.float32(10), bank + np.float32(10), 5)
    np.testing.assert_allclose(far, near, atol=5e-6)


def test_one_row_far_away_costs_the_others_no_digits() -> None:
    bank, x = RNG.normal(size=(300, 5)).astype(np.float32), RNG.normal(size=(40, 5)).astype(np.float32)
    far = np.append(bank, np.full((1, 5), 1e9, np.float32), axis=0)
    assert_allclose(knn_distances(x, far, 3), knn_distances(x, bank, 3), rtol=1e-5)
