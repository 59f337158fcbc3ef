"""Which columns make a row strange: against every change of one column, one after the other."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from diffad_jax import reasons as module
from diffad_jax.reasons import reasons, usual_values

RNG = np.random.default_rng(0)


def test_usual_values_stand_in_the_rows_and_divide_them_evenly() -> None:
    train = np.c_[RNG.permutation(900), RNG.integers(0, 2, 900), np.full(900, 7)].astype(np.int32)
    usual = usual_values(train)
    assert usual.shape == (9, 3)
    assert np.abs(usual[:, 0] - (50 + 100 * np.arange(9))).max() <= 1
    assert set(usual[:, 1]) == {0, 1} and set(usual[:, 2]) == {7}
    assert_array_equal(usual_values(np.zeros((30, 4, 4, 1))), np.zeros(0))


@pytest.mark.parametrize("at_once", [1, 9 * 4 * 3, 9 * 4 * 4 * 3, 2**22])
def test_the_best_change_of_each_column_is_found(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES_AT_ONCE", at_once)
    usual, rows = RNG.normal(size=(9, 4)), RNG.normal(size=(8, 4)).astype(np.float32)

    def score(x: np.ndarray) -> np.ndarray:
        assert x.size <= max(at_once, 9 * 4)
        return np.abs(x[:, 0] - 2 * x[:, 1]) + (x[:, 2] + 0.3) ** 2 + 0 * x[:, 3]

    found = reasons(score, rows, usual)
    for i, row in enumerate(rows.astype(np.float64)):
        for j in range(4):
            changed = [score(np.where(np.arange(4) == j, value, row)[None])[0] for value in usual[:, j]]
            assert found.scores[i, j] == min(changed) and found.values[i, j] == usual[np.argmin(changed), j]
    assert found.scores.shape == found.values.shape == (8, 4)
    assert [part.shape for part in reasons(score, rows[:0], usual)] == [(0, 4), (0, 4)]
