"""The training loop: batches in, log lines and checkpoints out. All arithmetic is in `training`."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from diffad_jax.checkpoint import Checkpoints
from diffad_jax.console import bar
from diffad_jax.data.dataset import Rows
from diffad_jax.data.pipeline import Batches, Pipeline, read_ahead
from diffad_jax.errors import Diverged, RunFailed
from diffad_jax.logs import Log
from diffad_jax.noise import key_of
from diffad_jax.sharding import Parallel, by_jit, data_mesh, make_state, own_rows
from diffad_jax.training import Batch, Params, Training, TrainState, TrainStep, make_dispatch


class Stopped(Exception):
    """A signal asked the run to stop, and its state is saved. exit_code: 128 + the signal's number, as shells have it."""

    def __init__(self, number: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step}, which is saved; repeat the command to go on"
        )
        self.exit_code = 128 + number


class Fitted(NamedTuple):
    """The state that a run ended with, and the seconds of training of all its sessions."""

    state: TrainState
    seconds: float


def fit(
    train_step: TrainStep,
    init: Callable[[], TrainState],
    train: Rows,
    workdir: str | Path,
    settings: Training,
    *,
    seed: int,
    pipeline: Pipeline | None = None,
    parallel: Parallel | None = None,
    validate: Callable[[Params], Array] | None = None,
    progress: str | None = None,
) -> Fitted:
    """Trains from the newest checkpoint of workdir, or from what `init` makes, up to settings.num_steps, and saves the end.

    init: pure; where there is a checkpoint it is asked for shapes alone, so that it is not drawn beside the one restored.
    train: transformed normals, [N, ...]. parallel: how a step runs on many devices, by default `by_jit`.
    validate: averaged parameters -> loss on held-out normals, asked at every checkpoint; where settings.keep is "best", the
    state of the least is returned in place of the last. progress: the label of a progress bar on standard error, or None.
    Every log line tells, since the line before it, the steps per second and the part of the time in which the loop waited
    for data. SIGTERM or SIGINT saves the state after the next dispatch and raises Stopped; a second one acts at once.
    Raises Diverged, with the last good checkpoint, when a loss or the gradient norm is not finite, and RunFailed when a
    state that is to be saved is not, a checkpoint or log line cannot be written, or a process that reads has ended.
    """
    pipeline = pipeline or Pipeline()
    num_steps, batch_size = settings.num_steps, settings.batch_size
    key = key_of(seed)
    dispatches: dict[int, Any] = {}
    place = np.arange(batch_size)[own_rows(batch_size)]
    parallel = parallel or by_jit(data_mesh(batch_size))
    shapes = jax.eval_shape(init)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, parallel.shardings(shapes)
    )
    with (
        _Signals() as signals,  # outermost: one that comes while the last save is written must not end it
        Checkpoints(Path(workdir) / "checkpoints") as checkpoints,
    ):
        state = checkpoints.restore(like) or make_state(init, parallel)
        first = step = int(state.step)
        seconds = checkpoints.seconds(first)
        started = time.perf_counter()
        batches = Batches(
            train,
            seed,
            batch_size,
            start=first,
            num_steps=num_steps,
            steps_per_dispatch=settings.steps_per_dispatch,
            flip=pipeline.flip,
            crop=pipeline.crop,
            own=own_rows(batch_size),
        )
        with (
            Log(workdir, first) if jax.process_index() == 0 else nullcontext() as log,
            bar(
                total=num_steps, initial=first, desc=progress, disable=progress is None, unit="step", mininterval=0.5
            ) as shown,
            read_ahead(batches, pipeline) as ahead,
        ):
            stream = _reading_on(ahead, batches, signals)
            metrics_reader = _Metrics(shown, log, checkpoints, first)

            def save(with_loss: bool = True) -> None:
                metrics_reader.read()
                losses = {"validation_loss": float(validate(state.ema))} if validate and with_loss else {}
                metrics_reader.check(step, losses)
                if losses and log:
                    log.write(step, losses)
                checkpoints.save(step, state, seconds + time.perf_counter() - started, losses.get("validation_loss"))

            while step < num_steps:
                asked = time.perf_counter()
                x_0 = next(stream)
                metrics_reader.waited += time.perf_counter() - asked
                count = len(x_0)
                if count not in dispatches:
                    dispatch = make_dispatch(train_step, count, parallel.compile)
                    dispatches[count] = dispatch, parallel.put_batches(np.tile(place, (count, 1)))
                dispatch, places = dispatches[count]
                state, metrics = dispatch(state, Batch(parallel.put_batches(x_0), places), key)
                # The metrics of the dispatch before are read while this one runs, so that the device never waits for us.
                metrics_reader.read()
                step += count
                logged = _crosses(step, count, settings.log_every) or step == num_steps
                metrics_reader.pending = _Pending(step, metrics, signals.anywhere(), logged)
                shown.update(count)
                if step == num_steps or _crosses(step, count, settings.checkpoint_every):
                    save()
                if metrics_reader.stop:
                    # Without a loss: which checkpoint is best must not depend on where a run was stopped.
                    save(with_loss=False)
                    raise Stopped(metrics_reader.stop, step)
        if settings.keep == "best":
            del state  # which the best one takes the place of, on devices that may have no room for both
            state = checkpoints.restore(like, best=True)
    # One that came after the last dispatch, when all that the loop was to save is on the disk.
    if stop := int(signals.anywhere()):
        raise Stopped(stop, step)
    return Fitted(state, seconds + time.perf_counter() - started)


def _reading_on(ahead: Iterator[np.ndarray], batches: Batches, signals: "_Signals") -> Iterator[np.ndarray]:
    """The batches that are read ahead, and from where their readers end at a signal those that this process reads.

    A signal to the whole group may meet a reader that does not ignore it yet.
    """
    for item in range(len(batches)):
        try:
            x_0 = next(ahead)
        except RunFailed:
            if not signals.received:
                raise
            yield from map(batches.__getitem__, range(item, len(batches)))
            return
        yield x_0


class _Pending(NamedTuple):
    """A dispatch whose metrics were not read yet: it ended with `step`; signal: asked of all processes at its start."""

    step: int
    metrics: dict[str, Array]
    signal: Array | int
    logged: bool


class _Metrics:
    """Reads metrics one dispatch late: checks them, shows them and, where it is time, logs them with the speed.

    waited: seconds since the last line in which the loop waited for data. stop: the signal that asked to stop, or 0.
    """

    def __init__(self, shown: tqdm, log: Log | None, checkpoints: Checkpoints, first: int):
        self.pending: _Pending | None = None
        self.waited, self.stop = 0.0, 0
        self._shown, self._log, self._checkpoints = shown, log, checkpoints
        self._line = first, time.perf_counter()

    def read(self) -> None:
        """Waits for the pending dispatch, if there is one; raises Diverged where its metrics are not finite."""
        if self.pending is None:
            return
        (step, metrics, signalled, logged), self.pending = self.pending, None
        values = {name: float(value) for name, value in metrics.items()}
        self.check(step, values)
        self.stop = int(signalled)
        self._shown.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        if logged and self._log:
            now, (before, then) = time.perf_counter(), self._line
            rates = {"steps_per_second": (step - before) / (now - then), "data_wait": self.waited / (now - then)}
            self._log.write(step, values | rates)
            self.waited, self._line = 0.0, (step, now)

    def check(self, step: int, values: dict[str, float]) -> None:
        """Raises Diverged where one of the values is not finite."""
        if not all(map(math.isfinite, values.values())):
            found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
            raise Diverged(
                f"step {step}: {found}; last good checkpoint: {self._checkpoints.latest() or 'none'}. Likely causes: "
                "learning rate too high, too little warm-up, values far outside the expected range in the training data; at "
                "the first step also a loss of one's own"
            )


def _crosses(step: int, count: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (step - count, step]."""
    return step // every > (step - count) // every


_largest = jax.jit(jnp.max)


class _Signals:
    """Notes the first SIGTERM or SIGINT while it is entered; the second acts as it would have without."""

    received = 0

    def anywhere(self) -> Array | int:
        """The signal that any process received, or 0: all processes learn of it from the same call, and so stop together."""
        if jax.process_count() == 1:
            return self.received
        everywhere = Mesh(np.asarray(jax.devices()), ("devices",))
        own = np.full(jax.local_device_count(), self.received, np.int32)
        each = jax.make_array_from_process_local_data(NamedSharding(everywhere, PartitionSpec("devices")), own)
        return _largest(each)

    def __enter__(self) -> "_Signals":
        # Python hears signals in the main thread alone.
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__(None, None, None)
