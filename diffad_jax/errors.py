"""What a user can get wrong."""


class InputError(ValueError):
    """Bad input from outside: one line that names the file, key or argument, what was found and what is allowed."""


class RunFailed(RuntimeError):
    """A run that could not go on: one line that tells what happened and what is left of it."""
