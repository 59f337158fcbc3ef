"""Processes that read for the input pipeline: signals to them, their death, and that of the process that trains."""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from processes import CONTEXT

from diffad_jax.data.pipeline import Batches, Pipeline, read_ahead
from diffad_jax.errors import RunFailed


class Signalled:
    """Rows whose reader gets SIGTERM and SIGINT, and after `whole` readings SIGKILL. Their values: its process number."""

    shape, dtype = (8, 1), np.dtype(np.int64)

    def __init__(self, whole: int) -> None:
        self.left = whole

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        if not self.left:
            time.sleep(2)  # What was read before is delivered.
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return np.full((8, 1), os.getpid())


READER = Pipeline(workers=1, threads=1)


def test_a_process_that_reads_outlives_signals_and_its_death_is_told() -> None:
    with read_ahead(Batches(Signalled(2), 0, 8, 0, 50), READER) as stream:  # type: ignore[arg-type]
        next(stream), next(stream)
        with pytest.raises(RunFailed, match="config.pipeline.workers: a process that reads the data has ended"):
            next(stream)


def read_until_killed(told: Connection) -> None:
    with read_ahead(Batches(Signalled(100), 0, 8, 0, 50), READER) as stream:  # type: ignore[arg-type]
        told.send(int(next(stream)[0, 0, 0]))
        os.kill(os.getpid(), signal.SIGKILL)


def runs_still(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_that_reads_ends_with_the_one_that_trains() -> None:
    heard, told = CONTEXT.Pipe()
    trainer = CONTEXT.Process(target=read_until_killed, args=(told,))
    trainer.start()
    told.close()
    assert heard.poll(60)
    reader = heard.recv()
    trainer.join()
    deadline = time.monotonic() + 10
    while runs_still(reader):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.1)
