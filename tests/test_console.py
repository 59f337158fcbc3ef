"""Bars and lines on standard error that end nothing, whatever standard error is, and fit the terminal that it is."""

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffad_jax import console, evaluation


def closed() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    return stream


def full() -> io.TextIOBase:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full, a disk that is always full, is Linux's")
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)


@pytest.mark.parametrize("stream", [lambda: None, closed, full], ids=["none", "closed", "full"])
def test_nobody_need_be_there(stream: Callable[[], io.TextIOBase | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "WAIT", 0.0)
    monkeypatch.setattr(sys, "stderr", stream())
    console.say("heard by nobody")
    assert list(console.bar(range(3))) == list(console.bar(range(3), disable=None)) == [0, 1, 2]
    rows = np.ones((40, 2), np.float32)
    assert evaluation.joined(lambda x: x.sum(axis=1), rows, 8).sum() == 80


def test_a_bar_fits_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stderr", os.fdopen(ours, "w", buffering=1))
    with console.bar(total=10, desc="scoring " * 4, disable=None) as shown:
        shown.update(5)
        shown.refresh()
    written = os.read(terminal, 10_000).decode()
    lines = [line for line in written.replace("\n", "\r").split("\r") if "50%" in line]
    assert lines and all(len(line) < 60 for line in lines)
