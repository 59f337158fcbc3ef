"""What a run writes down while it trains: JSON lines and TensorBoard scalars."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from diffad_jax.errors import RunFailed

FLUSH_SECONDS = 30.0


class Log:
    """Scalars by step, to `log.jsonl` and TensorBoard event files of one directory, from the step `first` on.

    A run that was killed takes the steps since its last checkpoint again: what is there of steps after `first` is dropped.
    Raises RunFailed where they cannot be written.
    """

    def __init__(self, directory: str | Path, first: int):
        self._directory, self._first = Path(directory), first
        with self._failures_in_one_line():
            (self._directory / "tensorboard").mkdir(parents=True, exist_ok=True)
            self._lines = (self._directory / "log.jsonl").open("a+b")
            _drop_after(self._lines, first)
        self._board: Any = None
        self._flushed = time.monotonic()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On a full disk closing fails too, which must not hide the error that tells so.
        with suppress(OSError) if error else self._failures_in_one_line():
            self._lines.close()
            if self._board:
                self._board.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line {"step": ..., name: value, ...}; a value that is not finite becomes null, as JSON has none."""
        # Not before the first line, which is written while the device computes: tensorboardX imports PyTorch where it is
        # installed, and that would put off the first step by a second.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()])
        with self._failures_in_one_line():
            self._lines.write((json.dumps({"step": step, **values}) + "\n").encode())
            self._lines.flush()
            if self._board is None:
                # Not SummaryWriter, whose thread dies when the disk is full and leaves the training waiting for it for ever.
                self._board = EventsWriter(str(self._directory / "tensorboard" / "events"))
                # At which TensorBoard forgets what other files hold of this step and later ones.
                start = SessionLog(status=SessionLog.START)
                self._board.write_event(Event(step=self._first + 1, wall_time=time.time(), session_log=start))
            self._board.write_event(Event(step=step, wall_time=time.time(), summary=summary))
            if time.monotonic() > self._flushed + FLUSH_SECONDS:
                self._board.flush()
                self._flushed = time.monotonic()

    @contextmanager
    def _failures_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailed(f"{self._directory}: the log cannot be written ({error.strerror})") from error


def _drop_after(lines: BinaryIO, step: int) -> None:
    """Cuts the log off before its first line of a later step, and what no line follows that a killed run began to write."""
    lines.seek(0)
    kept = read = 0
    for line in lines:
        read += len(line)
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith(b"\n"):
            kept = read
    lines.truncate(kept)
