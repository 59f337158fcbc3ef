"""What a user can get wrong."""


class InputError(ValueError):
    """Bad input from outside: one line that names the file, key or argument, what was found and what is allowed."""


class RunFailed(RuntimeError):
    """A run that could not go on: one line that tells what happened and what is left of it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the host, or by JAX's words a device, has no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
