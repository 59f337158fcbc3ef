"""What commands say on standard error: bars and lines, which must not end the work when nobody can read them any more."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm


class _Unread:
    """Standard error, without the errors of a pipe that was closed or a disk that is full."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)  # its encoding, and whether it is a terminal


def bar(over: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """tqdm(over, **settings) on standard error."""
    return tqdm(over, file=_Unread(), **settings)


def say(line: object) -> None:
    """Prints a line on standard error."""
    if sys.stderr is not None:  # as where it was closed before the start
        print(line, file=_Unread())
