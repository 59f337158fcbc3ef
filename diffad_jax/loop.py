"""The training loop: batches in, log lines and checkpoints out. All arithmetic is in `training`."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from diffad_jax.checkpoint import Checkpoints
from diffad_jax.data.dataset import Rows
from diffad_jax.data.pipeline import Batches, Pipeline, read_ahead
from diffad_jax.logs import Log
from diffad_jax.sharding import data_mesh, replicate, split
from diffad_jax.training import Batch, TrainState, make_dispatch

TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]


class Diverged(RuntimeError):
    """The loss or the gradient stopped being finite."""


def fit(
    train_step: TrainStep,
    state: TrainState,
    train: Rows,
    workdir: str | Path,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    steps_per_dispatch: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    pipeline: Pipeline | None = None,
    progress: str | None = None,
) -> TrainState:
    """Trains from the newest checkpoint of workdir, or from `state`, up to num_steps, and saves the last state.

    train: transformed normals, [N, ...]. steps_per_dispatch: steps compiled into one program. log_every and
    checkpoint_every are rounded up to whole dispatches. progress: the label of a progress bar on standard error, or None.
    Every log line tells, since the line before it, the steps per second and the part of the time in which the loop waited
    for data.
    Raises Diverged, with the last good checkpoint, when the loss or gradient norm is not finite.
    """
    pipeline = pipeline or Pipeline()
    key = jax.random.key(seed)
    dispatches: dict[int, Any] = {}
    share = batch_size // jax.process_count()
    place = jax.process_index() * share + np.arange(share)
    mesh = data_mesh(batch_size)
    key, state = replicate((key, state), mesh)
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints, Log(workdir) as log:
        state = checkpoints.restore(state) or state
        first = step = int(state.step)
        pending: tuple[int, dict[str, Array], bool] | None = None
        bar = tqdm(
            total=num_steps, initial=first, desc=progress, disable=progress is None, unit="step", mininterval=0.5
        )
        waited = 0.0
        line = first, time.perf_counter()

        def read() -> None:
            """Waits for the metrics of the pending dispatch, checks them, shows them and, where it is time, logs them."""
            nonlocal pending, waited, line
            if pending is None:
                return
            (at, metrics, write), pending = pending, None
            values = {name: float(value) for name, value in metrics.items()}
            if not all(map(math.isfinite, values.values())):
                bar.close()
                raise Diverged(
                    f"step {at}: loss {values['loss']}, gradient norm {values['grad_norm']}; last good checkpoint: "
                    f"{checkpoints.latest() or 'none'}. Likely causes: learning rate too high, too little warm-up, "
                    "values far outside the expected range in the training data"
                )
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            if write:
                now = time.perf_counter()
                rate, data_wait = (at - line[0]) / (now - line[1]), waited / (now - line[1])
                log.write(at, {**values, "steps_per_second": rate, "data_wait": data_wait})
                waited, line = 0.0, (at, now)

        batches = Batches(
            train,
            seed,
            batch_size,
            first,
            num_steps,
            steps_per_dispatch,
            pipeline.flip,
            jax.process_index(),
            jax.process_count(),
        )
        with read_ahead(batches, pipeline) as stream:
            while step < num_steps:
                asked = time.perf_counter()
                x_0 = next(stream)
                waited += time.perf_counter() - asked
                count = len(x_0)
                if count not in dispatches:
                    dispatches[count] = make_dispatch(train_step, count)
                batch = split(Batch(x_0, np.tile(place, (count, 1))), mesh, axis=1)  # type: ignore[arg-type]
                state, metrics = dispatches[count](state, batch, key)
                # The metrics of the dispatch before are read while this one runs, so that the device never waits for us.
                read()
                step += count
                pending = step, metrics, _crosses(step, count, log_every) or step == num_steps
                bar.update(count)
                if _crosses(step, count, checkpoint_every) and step < num_steps:
                    read()
                    checkpoints.save(step, state)
        read()
        bar.close()
        checkpoints.save(num_steps, state)
    return state


def _crosses(step: int, count: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (step - count, step]."""
    return step // every > (step - count) // every
