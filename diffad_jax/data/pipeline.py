"""The input pipeline: which rows each step reads, made ready ahead of it in threads or in other processes."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from diffad_jax.data.dataset import Rows
from diffad_jax.errors import RunFailed


class Pipeline(NamedTuple):
    """config.pipeline: who reads, random flips and crops.

    workers: processes that read, 0 for threads of this one alone, which suffices where reading releases the interpreter.
    threads: dispatches that each of them has in the making at once, in as many threads, but no more than there are cores.
    flip: mirror half of the pictures left to right.
    crop: train on random squares of so many pixels a side, 0 for whole pictures; larger pictures are then scored patch by
    patch.
    """

    workers: int = 0
    threads: int = 4
    flip: bool = False
    crop: int = 0


@dataclass(frozen=True)
class Batches:
    """A sequence whose item i is the data of the i-th dispatch after step `start`, [steps of the dispatch, B / P, ...].

    An item is a function of (seed, step) alone, so that the step is the whole position in the data: a run that stopped reads
    on where it was, with any number of workers. Each epoch is one permutation of the rows; place j of step s is place
    s B + j of that stream, and is flipped or not, and cropped, by draws of its own. Of the global batch of
    `batch_size` this process makes the places `own`.
    """

    rows: Rows
    seed: int
    batch_size: int
    start: int
    num_steps: int
    steps_per_dispatch: int = 1
    flip: bool = False
    crop: int = 0
    own: slice = field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        return -(-(self.num_steps - self.start) // self.steps_per_dispatch)

    def __getitem__(self, item: int) -> np.ndarray:
        step = self.start + item * self.steps_per_dispatch
        count = min(self.steps_per_dispatch, self.num_steps - step)
        index = batch_rows(self.seed, len(self.rows), step * self.batch_size, count * self.batch_size)
        index = index.reshape(count, self.batch_size)[:, self.own]
        x = self.rows[index.ravel()].reshape(*index.shape, *self.rows.shape[1:])
        if self.flip:
            for i in range(count):
                mirrored = np.random.default_rng([self.seed, FLIPS, step + i]).random(self.batch_size)[self.own] < 0.5
                x[i, mirrored] = x[i, mirrored, :, ::-1]
        return self._cropped(x, step) if self.crop else x

    def _cropped(self, x: np.ndarray, step: int) -> np.ndarray:
        """A random square of each picture of x [steps, B / P, H, W, C]."""
        free = np.array(x.shape[2:4]) - self.crop + 1
        crops = np.empty((*x.shape[:2], self.crop, self.crop, x.shape[4]), x.dtype)
        for i in range(len(x)):
            draws = np.random.default_rng([self.seed, CROPS, step + i]).random((self.batch_size, 2))[self.own]
            for j, (top, left) in enumerate((draws * free).astype(int)):
                crops[i, j] = x[i, j, top : top + self.crop, left : left + self.crop]
        return crops


PR_SET_PDEATHSIG = 1  # of Linux
FLIPS, CROPS = 1, 2  # Tell the draws of one step apart.


def batch_rows(seed: int, num_rows: int, start: int, count: int) -> np.ndarray:
    """The training rows at places start..start+count-1 of the shuffled stream, int [count].

    The stream is one permutation of the rows an epoch, drawn from (seed, epoch): a function of its arguments alone, so that
    a resumed run reads what the unbroken one would have read.
    """
    places = np.arange(start, start + count)
    epochs = places // num_rows
    rows = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(seed, int(epoch), num_rows)[places[here] % num_rows]
    return rows


@lru_cache(maxsize=2)  # Batches read ahead may lie on both sides of an epoch's end.
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


@contextmanager
def read_ahead(batches: Batches, pipeline: Pipeline) -> Iterator[Iterator[np.ndarray]]:
    """The items of `batches` in order, each read before it is asked for; what reading raises is raised there.

    Raises RunFailed where a process that reads has ended.
    """
    # More threads than cores take time from the step: 3 % of one of 20 ms on two cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(pipeline.threads, cores)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=pipeline.threads)
    dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
    if pipeline.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks absl for its own flags, which a notebook or a test has not parsed.
    workers = grain.MultiprocessingOptions(num_workers=pipeline.workers)
    iterator = iter(dataset.mp_prefetch(workers, worker_init_fn=_bind_to_parent))
    try:
        yield _readers_alive(iterator)
    finally:
        iterator.close()


def _bind_to_parent(worker: int, workers: int) -> None:
    """A process that reads leaves signals to the loop, which may need data until it has saved, and ends when the loop does.

    Both matter where a signal goes to a whole group of processes, as from a terminal or Slurm, and after SIGKILL.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent and os.getppid() != parent.pid:  # It ended before it could be asked to take this one along.
            os._exit(1)


def _readers_alive(stream: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        yield from stream
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise RunFailed(
            "config.pipeline.workers: a process that reads the data has ended, by a signal or for want of memory, of which "
            "fewer workers take less"
        ) from error
