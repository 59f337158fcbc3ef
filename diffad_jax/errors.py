"""What a user can get wrong, and the words in which an error line says so."""

import difflib
import errno
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: one line that names the file, key or argument, what was found and what is allowed."""


class RunFailed(RuntimeError):
    """A run that could not go on: one line that tells what happened and what is left of it."""


class Diverged(RunFailed):
    """The loss or the gradient stopped being finite."""


# What a system tells of a machine rather than of what the user asked for: the same may be tried again.
OF_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}


def unusable(what: str, error: OSError) -> InputError | RunFailed:
    """The error that tells of a file or folder which cannot be used: a full or broken disk is no bad input."""
    kind = RunFailed if error.errno in OF_MACHINE else InputError
    return kind(f"{what} ({error.strerror or error})")


def suggestion(found: str, allowed: Iterable[str]) -> str:
    """ "allowed are a, b, c" for an error line, the closest match to `found` named first."""
    allowed = list(allowed)
    if not allowed:
        return "none is allowed"
    close = difflib.get_close_matches(found, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed are {', '.join(allowed)}"


def check_choice(what: str, found: object, allowed: Iterable[str]) -> None:
    """Raises InputError, naming the flag, key or argument `what`, where `found` is none of the allowed names."""
    allowed = list(allowed)
    if found not in allowed:
        raise InputError(f"{what}: found {found!r}; {suggestion(str(found), allowed)}")


def first_line(error: BaseException) -> str:
    """The first line with words of what an error says, or its name where it says nothing."""
    return next(filter(str.strip, str(error).splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """All that an error says in one line, or its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether the host, or by JAX's words a device, has no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
