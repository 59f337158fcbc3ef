"""The commands. `python -m experiments.NAME` starts here, before anything of weight is imported."""

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# Every step of a program on a CPU takes hundreds of megabytes from the allocator and gives them back. In pages of 4 KiB that
# costs up to a quarter of a step; glibc asks the kernel for large pages only where this is set when the process starts.
LARGE_PAGES = "glibc.malloc.hugetlb=1"


def _restart_with_large_pages() -> None:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{LARGE_PAGES}".lstrip(":")
        os.execv(sys.executable, sys.orig_argv)


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    if sys.stdout:  # it may be closed
        sys.stdout.flush()
    os._exit(128 + number)


if sys.argv[0] == "-m":  # so Python calls a module that is about to run as a command
    _restart_with_large_pages()
    if os.getpid() == 1:  # of a container, from which the kernel keeps signals that it does not handle
        signal.signal(signal.SIGTERM, _end_at_once)
    # Looking for garbage among what imports leave takes a tenth of a command's start; `cli.run` turns it on again.
    gc.disable()
