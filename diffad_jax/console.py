"""What commands say on standard error: bars and lines, which must not end the work when nobody can read them any more."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

# Of a pipe that was closed, a disk that is full, a stream that is closed, and none at all (None), as daemons have it.
UNREAD = (OSError, ValueError, AttributeError)


class _Stream:
    """Standard error, which may come to be one that nobody reads."""

    def write(self, text: str) -> None:
        with suppress(*UNREAD):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(*UNREAD):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with suppress(*UNREAD):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()  # by which tqdm finds the width of a terminal

    @property
    def encoding(self) -> str:
        return getattr(sys.stderr, "encoding", None) or "ascii"


def bar(over: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """tqdm(over, **settings) on standard error."""
    return tqdm(over, file=_Stream(), dynamic_ncols=True, **settings)


def say(line: object) -> None:
    """Prints a line on standard error."""
    print(line, file=_Stream(), flush=True)
