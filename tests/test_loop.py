"""The loop: the order of the data, stopping and going on, damaged checkpoints and losses that are not finite."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from diffad_jax.checkpoint import Checkpoints
from diffad_jax.data.pipeline import batch_rows
from diffad_jax.errors import InputError
from diffad_jax.loop import Diverged, TrainStep, fit
from diffad_jax.noise import gaussian
from diffad_jax.training import Batch, Params, TrainState, init_state, make_train_step

B, D = 8, 4
DATA = np.random.default_rng(0).normal(size=(30, D)).astype(np.float32)
OPTIMIZER = optax.adam(0.05)


def start() -> TrainState:
    return init_state({"w": jnp.eye(D), "b": jnp.zeros(D)}, OPTIMIZER)


def regression(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
    return ((gaussian(keys, x_0) + u[:, None] * (x_0 @ params["w"]) - params["b"]) ** 2).mean(axis=-1)


STEP = make_train_step(regression, OPTIMIZER, B)


def run(workdir: Path, num_steps: int, train_step: TrainStep = STEP, steps_per_dispatch: int = 1) -> TrainState:
    return fit(
        train_step,
        start(),
        DATA,
        workdir,
        seed=3,
        num_steps=num_steps,
        batch_size=B,
        steps_per_dispatch=steps_per_dispatch,
        log_every=5,
        checkpoint_every=10,
    )


def assert_same(one: TrainState, other: TrainState) -> None:
    """To the last bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def saved(workdir: Path) -> set[int]:
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def lines(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """The work directory and last state of a run of 30 steps that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, jax.tree.map(np.array, run(workdir, 30))


@pytest.fixture
def warnings_of_absl(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("absl")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


# --- data ------------------------------------------------------------------------------------------------------------


def test_the_step_sees_the_stream_in_order(tmp_path: Path) -> None:
    """A step that adds up 31^step x_0[0] tells in which order it saw what; batches of 8 from 30 rows span epochs."""

    def remember(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        seen = state.params["b"].at[:].set(31 * state.params["b"] + batch.x_0.sum(axis=0))
        metrics = {"loss": jnp.zeros(()), "grad_norm": jnp.zeros(())}
        return state._replace(step=state.step + 1, params={**state.params, "b": seen}), metrics

    expected = np.zeros(D)
    for batch in batch_rows(3, len(DATA), 0, 5 * B).reshape(5, B):
        expected = 31 * expected + DATA[batch].sum(axis=0)
    for per_dispatch in (1, 3):
        state = run(tmp_path / str(per_dispatch), 5, remember, per_dispatch)
        np.testing.assert_allclose(state.params["b"], expected, rtol=1e-4)


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_dispatch", [1, 4])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, per_dispatch: int) -> None:
    stopped = tmp_path / "stopped"
    run(stopped, 12, steps_per_dispatch=per_dispatch)
    seen: list[int] = []

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        jax.debug.callback(lambda at: seen.append(int(at)), state.step)
        return STEP(state, batch, key)

    continued = run(stopped, 30, step, steps_per_dispatch=per_dispatch)
    jax.effects_barrier()
    assert sorted(seen) == list(range(12, 30))
    assert_same(continued, run(tmp_path / "unbroken", 30, steps_per_dispatch=per_dispatch))


def test_a_finished_run_is_not_trained_again(unbroken: tuple[Path, TrainState]) -> None:
    workdir, state = unbroken

    def forbidden(*_: object) -> tuple[TrainState, dict[str, Array]]:
        raise AssertionError("trained")

    assert_same(run(workdir, 30, forbidden), state)


def test_the_newest_two_checkpoints_are_kept(unbroken: tuple[Path, TrainState]) -> None:
    assert saved(unbroken[0]) == {20, 30}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_and_then_replaced(
    tmp_path: Path,
    unbroken: tuple[Path, TrainState],
    damage: Callable[[Path], None],
    warnings_of_absl: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "checkpoints" / "30").rglob("*"):
        if file.is_file():
            damage(file)
    assert_same(run(tmp_path, 30), unbroken[1])
    assert f"{tmp_path}/checkpoints/30 cannot be read" in warnings_of_absl.text
    # The file on disk is whole again: what evaluates the run reads the last state, not the one before it.
    warnings_of_absl.clear()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert_same(checkpoints.restore(start()), unbroken[1])
    assert "cannot be read" not in warnings_of_absl.text and saved(tmp_path) == {20, 30}


def test_when_no_checkpoint_can_be_read_nothing_is_overwritten(
    tmp_path: Path, unbroken: tuple[Path, TrainState]
) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            truncate(file)
    with pytest.raises(InputError, match="checkpoints: no checkpoint can be read .*30, 20"):
        run(tmp_path, 30)
    assert saved(tmp_path) == {20, 30}


# --- what is written down --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_dispatch", "expected"), [(1, [5, 10, 12]), (4, [8, 12]), (9, [9, 12])])
def test_a_line_is_logged_for_every_five_steps_and_the_last(
    tmp_path: Path, per_dispatch: int, expected: list[int]
) -> None:
    run(tmp_path, 12, steps_per_dispatch=per_dispatch)
    assert [line["step"] for line in lines(tmp_path)] == expected
    assert all(line.keys() == {"step", "loss", "grad_norm", "steps_per_second", "data_wait"} for line in lines(tmp_path))


@pytest.mark.parametrize(("quantity", "per_dispatch", "found_at"), [("loss", 1, 18), ("grad_norm", 4, 20)])
def test_a_run_that_diverges_stops_and_keeps_what_was_good(
    tmp_path: Path, quantity: str, per_dispatch: int, found_at: int
) -> None:
    """Step 18 is the first whose metric is not finite."""

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        next_state, metrics = STEP(state, batch, key)
        return next_state, {**metrics, quantity: jnp.where(state.step == 17, jnp.nan, metrics[quantity])}

    with pytest.raises(Diverged, match=rf"^step {found_at}: .*\bnan\b.*last good checkpoint: 1[02]\b.*learning rate"):
        run(tmp_path, 30, step, per_dispatch)
    assert [line["step"] for line in lines(tmp_path)][:2] == ([5, 10] if per_dispatch == 1 else [8, 12])
    assert all(np.isfinite(list(line.values())).all() for line in lines(tmp_path))
    (good,) = saved(tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert_same(checkpoints.restore(start()), run(tmp_path / "good", good, steps_per_dispatch=per_dispatch))


def test_an_enormous_learning_rate_diverges(tmp_path: Path) -> None:
    step = make_train_step(regression, optax.sgd(1e12), B)
    with pytest.raises(Diverged):
        fit(step, init_state(start().params, optax.sgd(1e12)), DATA, tmp_path, seed=0, num_steps=50, batch_size=B)
