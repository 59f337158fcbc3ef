"""Every detector finds what is anomalous, depends on its arguments alone, and survives awkward data."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from diffad_jax import defaults, methods, nearness
from diffad_jax.errors import Diverged, InputError
from diffad_jax.methods import METHODS, detect
from diffad_jax.metrics import metrics

WIDTH = 6
TRAINED = ("ddpm", "dit", "dte_c", "dte_ig")


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """The defaults, trained for fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            methods, "TIME_ESTIMATION", methods.TIME_ESTIMATION._replace(num_steps=100, steps_per_dispatch=50)
        )
        for name, config in (("ddpm", defaults.mlp()), ("dit", defaults.dit())):
            config.training.update({"num_steps": 40, "steps_per_dispatch": 20})
            patch.setitem(METHODS, name, methods.network(partial(methods.diffusion_programs, config)))
        methods._time_programs.cache_clear()
        yield
    methods._time_programs.cache_clear()


def problem(rows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals on a thin plane; anomalies off it, by less than the spread within it."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows + 60, WIDTH)) * np.array([5, 5, 1, 1, 0.2, 0.2])
    x[-20:] += np.array([0, 0, 0, 0, 2, -2])
    x[:, 3] = 7.0
    return x[:rows].astype(np.float32), x[rows:].astype(np.float32), np.repeat([0, 1], [40, 20])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_anomalies_beside_a_constant_column_in_20_rows(name: str) -> None:
    if name == "copod":
        pytest.importorskip("pyod")
    train, test, labels = problem(20)
    found = detect(name, train, test, 0)
    assert found.scores.shape == labels.shape and found.scores.dtype == np.float64
    assert metrics(labels, found.scores)["auroc"] > (0.9 if name in ("ours", "ddpm", "dit", "dte_np", "dte_c") else 0.6)
    assert found.seconds_score > 0
    if name in TRAINED:
        again = detect(name, train, test[::-1], 0)
        np.testing.assert_allclose(again.scores[::-1], found.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_rows_that_are_all_copies_give_finite_scores(name: str) -> None:
    if name == "copod":
        pytest.importorskip("pyod")
    _, test, _ = problem()
    assert np.isfinite(detect(name, np.ones((20, WIDTH), np.float32), test, 0).scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_rows_far_from_the_normals_give_finite_scores(name: str) -> None:
    if name == "copod":
        pytest.importorskip("pyod")
    train, test, _ = problem(20)
    test[-1] = [3e38, 1e20, 1, 7, -3e38, 0]
    scores = detect(name, train, test, 0).scores
    assert np.isfinite(scores).all()
    if name in ("knn", "ddpm", "dit", "dte_np", "ours"):
        assert scores[-1] == scores.max()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_with_its_cause(name: str, bad: float) -> None:
    train, test, _ = problem(20)
    for spoilt in (train, test):
        spoilt = spoilt.copy()
        spoilt[3, 2] = bad
        with pytest.raises(InputError, match="not finite"):
            detect(name, spoilt if spoilt.shape == train.shape else train, test if len(spoilt) == 20 else spoilt, 0)


def test_seeds_differ_and_programs_are_shared() -> None:
    train, test, _ = problem(20)
    compiled = methods._time_programs.cache_info().misses
    first, other = detect("dte_c", train, test, 0).scores, detect("dte_c", train, test, 1).scores
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(detect("dte_c", train, test, 0).scores, first)
    assert methods._time_programs.cache_info().misses <= compiled + 1


def test_the_inverse_gamma_trains_for_longer_where_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, _ = problem(20)
    asked, make = [], methods.make_optimizer
    monkeypatch.setattr(
        methods, "make_optimizer", lambda steps, *a, **k: (asked.append(steps), make(steps, *a, **k))[1]
    )
    monkeypatch.setattr(methods, "LONGER_STEPS", 150)
    methods._time_programs.cache_clear()
    for most in (21, 20):
        monkeypatch.setattr(methods, "LONGER_FROM_ROWS", most)
        detect("dte_ig", train, test)
    assert asked == [100, 150]


def test_a_bank_holds_as_many_normals_as_a_run_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, labels = problem()
    full = detect("ours", train, test).scores
    monkeypatch.setattr(nearness, "MOST_ROWS", 20)
    fewer = detect("ours", train, test).scores
    assert not np.allclose(fewer, full, rtol=0.01)
    assert metrics(labels, fewer)["auroc"] > 0.9


def test_bad_arguments_are_refused() -> None:
    train, test, _ = problem(20)
    with pytest.raises(InputError, match="did you mean 'ddpm'"):
        detect("ddmp", train, test)
    with pytest.raises(InputError, match=r"ours: train has shape \(20, 6\), test \(60, 5\)"):
        detect("ours", train, test[:, :5])
    with pytest.raises(InputError, match="ours: found rows as a list, allowed are arrays"):
        detect("ours", train, test.tolist())  # type: ignore[arg-type]
    for name in ("ours", "copod", "dte_np"):
        with pytest.raises(InputError, match=f"{name}: found no test rows, needed is one or more"):
            detect(name, train, test[:0])


def test_divergence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, _ = problem(20)
    monkeypatch.setattr(methods, "LEARNING_RATE", 1e30)
    methods._time_programs.cache_clear()
    with pytest.raises(Diverged, match="the loss is"):
        detect("dte_c", train, test)
    methods._time_programs.cache_clear()


def test_ours_sees_what_whitening_hides() -> None:
    """The middle of a ring in two of thirty directions, of which the others hold noise of a tenth."""
    draw = np.random.default_rng(0)
    turn = np.linalg.qr(draw.normal(size=(30, 30)))[0]

    def around(radius: float, count: int) -> np.ndarray:
        angle = draw.uniform(0, 2 * np.pi, count)
        plane = radius * np.c_[np.cos(angle), np.sin(angle), np.zeros((count, 28))]
        return (plane @ turn + 0.1 * draw.normal(size=(count, 30))).astype(np.float32)

    train, test = around(1, 600), np.concatenate([around(1, 200), around(0.2, 200)])
    labels = np.repeat([0, 1], 200)
    assert metrics(labels, detect("dte_np", train, test).scores)["auroc"] < 0.6
    assert metrics(labels, detect("ours", train, test).scores)["auroc"] > 0.85


@pytest.mark.parametrize("method", ["ours", "dte_np"])
def test_rare_events_beside_amounts_of_money_are_seen(method: str) -> None:
    """Late payments, which normals have one of at most, in 1 of 20; a flag that was never set, and is."""
    draw = np.random.default_rng(0)

    def accounts(count: int) -> np.ndarray:
        money = draw.lognormal(10, 0.8, (count, 3))
        return np.c_[money, draw.random((count, 2)) < (0.05, 0.0)].astype(np.float32)

    late, flagged = accounts(100), accounts(100)
    late[:, 3], flagged[:, 4] = 4, 1
    scores = detect(method, accounts(600), np.concatenate([accounts(400), late, flagged])).scores
    assert scores[400:].min() > np.quantile(scores[:400], 0.97)
