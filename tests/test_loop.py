"""The loop: the order of the data, stopping and going on, damaged checkpoints and losses that are not finite."""

import json
import logging
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import Array
from processes import with_devices
from tensorboardX.proto.event_pb2 import Event, SessionLog

from diffad_jax import checksum, loop, sharding
from diffad_jax.checkpoint import Checkpoints
from diffad_jax.data.dataset import Rows
from diffad_jax.data.pipeline import Batches, Pipeline, batch_rows
from diffad_jax.errors import Diverged, InputError, RunFailed
from diffad_jax.logs import Log
from diffad_jax.loop import Fitted, Stopped, _Signals, fit
from diffad_jax.noise import gaussian, key_of
from diffad_jax.sharding import by_jit, by_pmap, data_mesh, mean_over_devices
from diffad_jax.training import Batch, Params, Training, TrainState, TrainStep, init_state, make_train_step

B, D = 8, 4
DATA = np.random.default_rng(0).normal(size=(30, D)).astype(np.float32)
OPTIMIZER = optax.adam(0.05)


def start() -> TrainState:
    return init_state({"w": jnp.eye(D), "b": jnp.zeros(D)}, OPTIMIZER)


def regression(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
    return ((gaussian(keys, x_0) + u[:, None] * (x_0 @ params["w"]) - params["b"]) ** 2).mean(axis=-1)


STEP = make_train_step(regression, OPTIMIZER, B)


def run(workdir: Path, num_steps: int, train_step: TrainStep = STEP, steps_per_dispatch: int = 1) -> TrainState:
    return fitted(workdir, num_steps, train_step, steps_per_dispatch=steps_per_dispatch).state


def fitted(
    workdir: Path,
    num_steps: int,
    train_step: TrainStep = STEP,
    train: Rows = DATA,
    init: Callable[[], TrainState] = start,
    **options: Any,
) -> Fitted:
    taken = {key: options.pop(key) for key in options.keys() & set(Training._fields)}
    settings = Training(**{"num_steps": num_steps, "batch_size": B, "log_every": 5, "checkpoint_every": 10} | taken)
    return fit(train_step, init, train, workdir, settings, seed=3, **options)


def calling(function: Callable[[int], object]) -> TrainStep:
    """The train step, which calls `function` with the number of steps before it."""

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        jax.debug.callback(lambda at: function(int(at)), state.step)
        return STEP(state, batch, key)

    return step


def assert_same(one: TrainState, other: TrainState) -> None:
    """To the last bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def saved(workdir: Path) -> set[int]:
    return {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()}


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


def test_metrics_are_read_while_the_next_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a step are asked for, which waits for it, once the step after it was started, but before a checkpoint."""
    events: list[tuple[str, int]] = []

    class Watched(float):
        step: int

        def __float__(self) -> float:
            events.append(("read", self.step))
            return 0.5

    def make_dispatch(*arguments: Any) -> Any:
        def dispatch(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Watched]]:
            loss = Watched(0.5)
            loss.step = sum(name == "started" for name, _ in events)
            events.append(("started", loss.step))
            return state, {"loss": loss}

        return dispatch

    monkeypatch.setattr(loop, "make_dispatch", make_dispatch)
    fitted(tmp_path, 8, log_every=1, checkpoint_every=5)
    expected = []
    for step in range(8):
        expected.append(("started", step))
        if step % 5:  # Step 4 was read for its checkpoint already.
            expected.append(("read", step - 1))
        if step in (4, 7):
            expected.append(("read", step))
    assert events == expected


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_dispatch", [1, 4])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, per_dispatch: int) -> None:
    stopped = tmp_path / "stopped"
    run(stopped, 12, steps_per_dispatch=per_dispatch)
    seen: list[int] = []
    continued = run(stopped, 30, calling(seen.append), steps_per_dispatch=per_dispatch)
    jax.effects_barrier()
    assert sorted(seen) == list(range(12, 30))
    assert_same(continued, run(tmp_path / "unbroken", 30, steps_per_dispatch=per_dispatch))


def test_a_run_that_goes_on_holds_no_second_state(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    def shapes_alone() -> TrainState:
        state = start()
        assert isinstance(state.step, jax.core.Tracer), "a state was made"
        return state

    run(tmp_path, 12)
    assert_same(fitted(tmp_path, 30, init=shapes_alone).state, unbroken[1])
    with pytest.raises(AssertionError, match="a state was made"):
        fitted(tmp_path / "new", 30, init=shapes_alone)


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


def test_whichever_file_of_the_newest_checkpoint_is_cut_short_the_run_goes_on(
    tmp_path: Path, unbroken: tuple[Path, TrainState]
) -> None:
    files = [file for file in (unbroken[0] / "checkpoints" / "30").rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 5
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(unbroken[0], workdir)
        truncate(workdir / file.relative_to(unbroken[0]))
        assert_same(run(workdir, 30), unbroken[1])


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_then_replaced_and_not_deleted(
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
    assert (tmp_path / "checkpoints" / "unread-30").is_dir()
    assert_same(run(tmp_path, 40), run(tmp_path / "unbroken", 40))


def test_a_checkpoint_that_memory_does_not_suffice_for_is_no_damaged_one(
    tmp_path: Path, unbroken: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)

    def full(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1099511627776 bytes."
        )

    monkeypatch.setattr(ocp.CheckpointManager, "restore", full)
    with pytest.raises(RunFailed, match=r"checkpoints/30: no memory to read it \(RESOURCE_EXHAUSTED: Out of memory"):
        run(tmp_path, 40)
    monkeypatch.undo()
    assert saved(tmp_path) == {20, 30}
    assert_same(run(tmp_path, 30), unbroken[1])


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), ValueError("PERMISSION_DENIED: Error opening file [x]")]
)
def test_a_checkpoint_that_may_not_be_read_is_no_damaged_one(
    tmp_path: Path, unbroken: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    for method in ("item_metadata", "restore"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(RunFailed, match="checkpoints/30: this user may not read it"),
        ):
            patch.setattr(ocp.CheckpointManager, method, mock.Mock(side_effect=error))
            run(tmp_path, 40)
    assert saved(tmp_path) == {20, 30}


def test_what_is_being_saved_is_left_alone_by_who_reads(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    half = tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp" / "metrics" / "metrics"
    half.parent.mkdir(parents=True)
    half.write_text('{"lo')
    filters = list(logging.getLogger("absl").filters)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(start()) is not None
    assert half.read_text() == '{"lo' and logging.getLogger("absl").filters == filters


def test_a_directory_that_orbax_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no UTF-8, which Orbax asks for"):
        Checkpoints(tmp_path / os.fsdecode(b"b\xff"))


def test_the_keys_of_a_run_are_of_one_generator_whatever_the_environment_chooses() -> None:
    with jax.default_prng_impl("rbg"):
        found = key_of(3)
    assert found == jax.random.key(3)


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


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)

    def other() -> TrainState:
        return init_state({"w": jnp.eye(D), "b": jnp.zeros(D + 1), "c": jnp.zeros(2)}, OPTIMIZER)

    with pytest.raises(InputError) as refused:
        fitted(tmp_path, 30, init=other)
    assert "30: holds another model" in str(refused.value)
    assert "params.b ((4,) there, (5,) asked)" in str(refused.value)
    assert "params.c (none there, (2,) asked)" in str(refused.value) and "and 5 more" in str(refused.value)
    assert "params.w" not in str(refused.value) and saved(tmp_path) == {20, 30}


def continued(workdir: Path, num_steps: int, devices: int, fsdp: int, pmap: bool) -> tuple[set[int], TrainState]:
    """On how many devices parts of the largest array lie, and the state."""
    sharding.MIN_SPLIT = 2
    mesh = data_mesh(B, fsdp, jax.devices()[:devices])
    train_step = make_train_step(regression, OPTIMIZER, B, mean_over_devices=mean_over_devices) if pmap else STEP
    state = fitted(workdir, num_steps, train_step, parallel=by_pmap(mesh) if pmap else by_jit(mesh)).state
    parts = {part.data.size for part in state.params["w"].addressable_shards}
    return parts, jax.tree.map(np.asarray, state)


def test_a_run_goes_on_with_other_devices_split_otherwise(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    """From one device to 2 x 4, to one, to 2 x 2 of four, and to eight by pmap, at any step between checkpoints."""
    run(tmp_path, 3)
    ways = [(7, 8, 4, False, 4), (12, 1, 1, False, 16), (19, 4, 2, False, 8), (30, 8, 1, True, 16)]
    for num_steps, devices, fsdp, pmap, size in ways:
        parts, state = with_devices(8, continued, tmp_path, num_steps, devices, fsdp, pmap)
        assert parts == {size}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, unbroken[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_where_it_was(
    tmp_path: Path, unbroken: tuple[Path, TrainState], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} at step 1[5-9]") as stopped:
        run(tmp_path, 30, calling(lambda at: at == 14 and os.kill(os.getpid(), number)))
    assert stopped.value.exit_code == 128 + number and signal.getsignal(number) == before
    (at,) = saved(tmp_path) - {10}
    assert f"at step {at}," in str(stopped.value)
    assert_same(run(tmp_path, 30), unbroken[1])


def test_a_signal_during_the_last_save_is_not_lost(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    checkpoints = iter((10, 20, 30))

    def asked_to_stop(params: Params) -> float:
        if next(checkpoints) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.5

    with pytest.raises(Stopped, match="stopped by SIGTERM at step 30"):
        fitted(tmp_path, 30, validate=asked_to_stop)
    assert_same(run(tmp_path, 30), unbroken[1])


def test_a_signal_while_the_last_save_is_written_does_not_end_it(
    tmp_path: Path, unbroken: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, once = ocp.CheckpointManager.wait_until_finished, iter([signal.SIGTERM])

    def asked_to_stop(manager: ocp.CheckpointManager) -> None:
        if 30 in manager.all_steps():
            for number in once:
                os.kill(os.getpid(), number)
        wait(manager)

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", asked_to_stop)
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 30, which is saved"):
        run(tmp_path, 30)
    monkeypatch.undo()
    assert saved(tmp_path) == {20, 30}
    assert_same(run(tmp_path, 30), unbroken[1])


@pytest.mark.parametrize(("signalled", "per_dispatch"), [(True, 1), (True, 4), (False, 1)])
def test_a_reader_that_a_signal_has_ended_costs_no_step(
    signalled: bool,
    per_dispatch: int,
    tmp_path: Path,
    unbroken: tuple[Path, TrainState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def ending(batches: Batches, pipeline: Pipeline) -> Iterator[Iterator[np.ndarray]]:
        def stream() -> Iterator[np.ndarray]:
            yield from (batches[0], batches[1])
            if signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            raise RunFailed("a process that reads has ended")

        yield stream()

    monkeypatch.setattr(loop, "read_ahead", ending)
    error, words = (Stopped, "stopped by SIGTERM") if signalled else (RunFailed, "a process that reads has ended")
    with pytest.raises(error, match=words):
        run(tmp_path, 30, steps_per_dispatch=per_dispatch)
    monkeypatch.undo()
    # Processes learn of a signal to one of them when the next dispatch ends, for which they need data still.
    assert (max(saved(tmp_path), default=0) > 2 * per_dispatch) == signalled
    assert_same(run(tmp_path, 30), unbroken[1])


# --- the best ----------------------------------------------------------------------------------------------------------


def loss_by_step(losses: dict[int, float]) -> Callable[[Params], float]:
    """A held-out loss that goes through the given values, one a checkpoint."""
    values = iter(losses.values())
    return lambda params: next(values)


LOSSES = {10: 0.3, 20: 0.1, 30: 0.4, 40: 0.2, 50: 0.3}


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    last = fitted(tmp_path / "last", 50, validate=loss_by_step(LOSSES), keep="last").state
    best = fitted(tmp_path / "best", 50, validate=loss_by_step(LOSSES), keep="best").state
    assert saved(tmp_path / "best") == {20, 40, 50}
    assert_same(last, run(tmp_path / "50", 50))
    assert_same(best, run(tmp_path / "20", 20))
    logged = {line["step"]: line["validation_loss"] for line in lines(tmp_path / "best") if "validation_loss" in line}
    assert logged == LOSSES
    # A finished run chooses the same one again; one that lost the best chooses the next that is there.
    assert_same(fitted(tmp_path / "best", 50, validate=loss_by_step({}), keep="best").state, best)
    shutil.rmtree(tmp_path / "best" / "checkpoints" / "20")
    assert_same(fitted(tmp_path / "best", 50, keep="best").state, run(tmp_path / "40", 40))


def test_a_save_returns_before_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, waited = threading.Event(), []
    options = partial(
        ocp.CheckpointManagerOptions,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: waited.append(go.wait(10))),
    )
    monkeypatch.setattr(ocp, "CheckpointManagerOptions", options)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, start())
        assert not waited
        go.set()
    assert waited == [True]


def test_a_device_sums_the_bits_that_numpy_sums() -> None:
    for array in (
        DATA,
        np.arange(7),
        np.array([True, False]),
        jnp.arange(6, dtype=jnp.bfloat16),
        np.float32([1, np.inf]),
    ):
        array = np.asarray(array, np.int32) if array.dtype == np.int64 else np.asarray(array)
        found = checksum._of_part_on_device(jnp.asarray(array))
        assert tuple(map(int, found)) == tuple(map(int, checksum._of_part(array)))


def test_where_a_run_was_stopped_has_no_say_in_what_is_best(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        stop = calling(lambda at: at == 14 and os.kill(os.getpid(), signal.SIGTERM))
        fitted(tmp_path, 50, stop, validate=loss_by_step({10: 0.3}), keep="best")
    rest = {at: loss for at, loss in LOSSES.items() if at > 10}
    assert_same(fitted(tmp_path, 50, validate=loss_by_step(rest), keep="best").state, run(tmp_path / "20", 20))


def test_a_damaged_loss_costs_no_more_than_the_loss(tmp_path: Path, warnings_of_absl: pytest.LogCaptureFixture) -> None:
    state = fitted(tmp_path, 50, validate=loss_by_step(LOSSES)).state
    truncate(tmp_path / "checkpoints" / "20" / "metrics" / "metrics")
    assert_same(fitted(tmp_path, 50, keep="best").state, run(tmp_path / "40", 40))
    assert_same(fitted(tmp_path, 50).state, state)
    assert "20/metrics/metrics cannot be read" in warnings_of_absl.text


# --- what is written down --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_dispatch", "expected"), [(1, [5, 10, 12]), (4, [8, 12]), (9, [9, 12])])
def test_a_line_is_logged_for_every_five_steps_and_the_last(
    tmp_path: Path, per_dispatch: int, expected: list[int]
) -> None:
    run(tmp_path, 12, steps_per_dispatch=per_dispatch)
    assert [line["step"] for line in lines(tmp_path)] == expected
    assert all(
        line.keys() == {"step", "loss", "grad_norm", "steps_per_second", "data_wait"} for line in lines(tmp_path)
    )


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


def test_a_held_out_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"^step 20: validation loss nan; last good checkpoint: 10\b"):
        fitted(tmp_path, 50, validate=loss_by_step({10: 0.1, 20: np.nan}))
    assert saved(tmp_path) == {10}


def test_the_seconds_are_those_of_all_sessions(tmp_path: Path) -> None:
    whole = fitted(tmp_path, 5, calling(lambda at: time.sleep(0.2))).seconds
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        saved_with = checkpoints.seconds(5)
    assert 1 < saved_with < whole
    assert saved_with <= fitted(tmp_path, 5).seconds < fitted(tmp_path, 10).seconds


@dataclass
class SlowRows:
    """Rows that take their time, and that vanish after a number of batches."""

    seconds: float = 0.0
    batches_left: int = 1000
    shape = DATA.shape
    dtype = DATA.dtype

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        self.batches_left -= 1
        if self.batches_left < 0:
            raise InputError("pictures/7.png: no such file")
        return DATA[index]

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        raise AssertionError("all rows at once")


def test_the_time_spent_waiting_for_data_is_logged(tmp_path: Path) -> None:
    fitted(tmp_path / "slow", 20, train=SlowRows(0.1), pipeline=Pipeline(threads=1))
    fitted(tmp_path / "fast", 20, calling(lambda at: time.sleep(0.05)))
    # The first lines hold the compilation.
    slow, fast = (lines(tmp_path / name)[-1]["data_wait"] for name in ("slow", "fast"))
    assert fast < 0.3 < 0.6 < slow <= 1


@pytest.mark.parametrize(
    "rest", ['{"step": 10, "lo', '{"step": 10, "loss": 2.0}', '{"step": 7}\n{"step": 8}\n', "\0\0\n"]
)
def test_a_log_goes_on_after_the_step_that_was_restored(tmp_path: Path, rest: str) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n{"step": 5, "validation_loss": 3}\n' + rest)
    with Log(tmp_path, first=5) as log:
        log.write(10, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 5}, {"step": 5, "validation_loss": 3}, {"step": 10, "loss": 1.0}]
    [board] = (tmp_path / "tensorboard").iterdir()
    events = [Event.FromString(record) for record in records(board)]
    # This is what TensorBoard drops later steps of other files at.
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [6]
    assert [event.step for event in events if event.summary.value] == [10]


def test_a_damaged_line_in_the_midst_of_a_log_costs_no_other(tmp_path: Path) -> None:
    kept = '{"step": 5}\n\0\0\n{"step": 6}\n'
    (tmp_path / "log.jsonl").write_text(kept + '{"step": 20}\n')
    with Log(tmp_path, first=10):
        assert (tmp_path / "log.jsonl").read_text() == kept


def records(file: Path) -> Iterator[bytes]:
    """Those of a TFRecord file: each between its length, with a checksum, and a checksum of its own."""
    content = file.read_bytes()
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        yield content[12:end]
        content = content[end + 4 :]


# --- what can go wrong around a run ----------------------------------------------------------------------------------


def test_data_that_vanish_leave_what_was_saved(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    with pytest.raises(InputError, match="^pictures/7.png: no such file"):
        fitted(tmp_path, 30, train=SlowRows(batches_left=27))
    assert saved(tmp_path) == {10, 20}
    assert_same(run(tmp_path, 30), unbroken[1])


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses to write more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_checkpoints_that_cannot_be_written_end_the_run(
    tmp_path: Path, unbroken: tuple[Path, TrainState], warnings_of_absl: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, 12)
    # TensorStore writes in parallel: the system's "File too large", or what another thread then failed to find.
    with (
        files_no_larger_than(1000),
        pytest.raises(RunFailed, match=r"checkpoints: .* cannot be written \(.*\).*: 12$") as failure,
    ):
        run(tmp_path, 30)
    assert len(str(failure.value)) < 500
    assert not warnings_of_absl.text
    assert_same(run(tmp_path, 30), unbroken[1])


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path: Path, unbroken: tuple[Path, TrainState]) -> None:
    run(tmp_path, 12)
    with files_no_larger_than(400), pytest.raises(RunFailed, match="the log cannot be written .File too large"):
        run(tmp_path, 30)
    assert_same(run(tmp_path, 30), unbroken[1])
    assert [line["step"] for line in lines(tmp_path)][-3:] == [20, 25, 30]


def test_an_enormous_learning_rate_diverges(tmp_path: Path) -> None:
    step = make_train_step(regression, optax.sgd(1e12), B)

    def init() -> TrainState:
        return init_state(start().params, optax.sgd(1e12))

    with pytest.raises(Diverged):
        fitted(tmp_path, 50, step, init=init)


def test_what_was_set_aside_before_gives_way(tmp_path: Path) -> None:
    for place in ("3/new", "unread-3/old"):
        (tmp_path / place).mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints._set_aside([3])
    assert [path.name for path in (tmp_path / "unread-3").iterdir()] == ["new"]


@pytest.mark.parametrize("words", ["\nfound below", " [in brackets]", ""])
def test_a_damaged_checkpoint_is_passed_over_whatever_it_is_told_by(tmp_path: Path, words: str) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"a": jnp.full(2, float(step))})
    restore = ocp.CheckpointManager.restore

    def failing(manager: ocp.CheckpointManager, step: int, **arguments: Any) -> Any:
        if step == 2:
            raise ValueError(words)
        return restore(manager, step, **arguments)

    with mock.patch.object(ocp.CheckpointManager, "restore", failing), Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"a": jnp.zeros(2)})["a"][0] == 1  # type: ignore[index]


def test_a_bit_that_has_turned_in_an_array_is_noticed(
    tmp_path: Path, warnings_of_absl: pytest.LogCaptureFixture
) -> None:
    rows = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"a": step * jnp.asarray(rows), "b": jnp.full(3, step)})
    largest = max((tmp_path / "2").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    for like in ({"a": np.zeros((64, 64), np.float32), "b": np.zeros(3, int)}, {"a": rows, "b": jnp.zeros(3, int)}):
        with Checkpoints(tmp_path) as checkpoints:
            np.testing.assert_array_equal(checkpoints.restore(like)["a"], rows)  # type: ignore[index]
    assert f"{tmp_path}/2 cannot be read (its arrays are not what was saved)" in warnings_of_absl.text


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2)})
        with pytest.raises(RunFailed, match="step 2: the state is not finite; last good checkpoint: 1"):
            checkpoints.save(2, {"a": jnp.array([0, jnp.nan])})
        assert checkpoints.latest() == 1


def test_notes_with_a_damaged_key_cost_no_more_than_the_notes(
    tmp_path: Path, warnings_of_absl: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(2)}, seconds=5.0)
    notes = tmp_path / "1" / "_CHECKPOINT_METADATA"
    notes.write_text(notes.read_text().replace("commit_timestamp", "commit_tymestamp"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"a": jnp.zeros(2)})["a"][0] == 1  # type: ignore[index]
        assert checkpoints.seconds(1) == 0
    assert f"{notes} cannot be read" in warnings_of_absl.text


def test_a_checkpoint_with_more_arrays_is_of_another_model(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2), "b": jnp.zeros(3)})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="holds another model, differing in b "):
        checkpoints.restore({"a": jnp.zeros(2)})


@pytest.mark.parametrize("content", ["{}", "[]", '{"loss": null}'])
def test_a_loss_that_is_none_costs_no_more_than_the_loss(tmp_path: Path, content: str) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2)}, loss=1.0)
    (file,) = tmp_path.glob("*/metrics/metrics")
    file.write_text(content)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1 and not file.exists()


def test_a_second_signal_acts_at_once() -> None:
    # Shells let what they start in the background ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), _Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
