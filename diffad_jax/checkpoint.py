"""Saving and restoring a training state. The only file that knows Orbax."""

from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from diffad_jax.errors import InputError


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest `keep` retained.

    Use as a context manager; leaving it waits for the last save to be on disk.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._damaged: list[int] = []

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: Any) -> None:
        """Starts saving `state` as `step`; a step that is already there is left alone.

        Checkpoints that `restore` found damaged are deleted first, since Orbax saves no step up to its newest one.
        """
        while self._damaged:
            self._manager.delete(self._damaged.pop())
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def latest(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, with the structure, shapes and shardings of `like`; None where there is none.

        A damaged checkpoint is passed over for the one before it, with a warning that names it. Raises InputError when
        checkpoints exist and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # Orbax raises many kinds for damaged files.
                first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
                logging.warning("checkpoint %s/%d cannot be read (%s)", self.directory, step, first_line)
                damaged.append(step)
            else:
                self._damaged = damaged
                return state
        if steps:
            raise InputError(f"{self.directory}: no checkpoint can be read (steps {steps}); remove it to start again")
        return None
