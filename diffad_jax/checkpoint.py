"""Saving and restoring a training state. The only file that knows Orbax."""

import dataclasses
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from diffad_jax import distributed
from diffad_jax.checksum import sum_of_bits
from diffad_jax.errors import InputError, RunFailed, first_line, out_of_memory

NOTES = {field.name for field in dataclasses.fields(ocp.metadata.StepMetadata)}


class _Unreadable(Exception):
    """A damaged checkpoint, and why it counts as one."""


class Checkpoints:
    """The checkpoints of one run, saved in the background; retained are the newest two and the one of least loss.

    A checkpoint holds everything that a run goes on from: parameters, their average, optimiser and step. The position in the
    data is the step, and the key of all noise is the seed folded with the step, so neither needs a place of its own. Beside
    it lie the seconds of training that it took and, where one was given, its loss on held-out normals.
    Use as a context manager; leaving it waits for the last save to be on disk.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()
        try:
            str(self.directory).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{str(self.directory)!a}: is no UTF-8, which Orbax asks for; choose another") from error
        # What matters of what Orbax logs, several times and with tracebacks, it also raises.
        logging.get_absl_logger().addFilter(_not_of_orbax)
        # Orbax opens no directory in which one of these cannot be read.
        self._drop_damaged("metrics/metrics", _holds_loss, "a loss")
        self._drop_damaged("_CHECKPOINT_METADATA", _holds_known_notes, "notes")
        options = ocp.CheckpointManagerOptions(
            create=True,
            best_fn=_negative_loss,
            preservation_policy=AnyPreservationPolicy(
                [LatestN(2), BestN(get_metric_fn=_negative_loss, n=1, keep_checkpoints_without_metrics=False)]
            ),
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        self._damaged: list[int] = []

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._failures_in_one_line():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()
            logging.get_absl_logger().removeFilter(_not_of_orbax)

    def save(self, step: int, state: Any, seconds: float = 0.0, loss: float | None = None) -> None:
        """Starts saving `state` as `step`; a step that is already there is left alone.

        Checkpoints that `restore` found damaged are set aside first, since Orbax saves no step up to its newest one.
        Raises RunFailed when this save, or the one before it in the background, cannot be written, and on a state that is
        not finite.
        """
        with self._failures_in_one_line():
            if self._damaged:
                self._set_aside(self._damaged)
                self._damaged = []
            if step in self._manager.all_steps():
                return
            bits, finite = sum_of_bits(state)
            if not finite:
                raise RunFailed(
                    f"step {step}: the state is not finite; last good checkpoint: {self.latest() or 'none'}"
                )
            self._manager.save(
                step,
                args=ocp.args.StandardSave(state),
                metrics=None if loss is None else {"loss": loss},
                custom_metadata={"seconds": seconds, "sum_of_bits": bits},
            )

    def latest(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def seconds(self, step: int) -> float:
        """The seconds of training, of all sessions, that led to `step`; 0 where they cannot be read."""
        return float(self._noted(step, "seconds") or 0.0)

    def _noted(self, step: int, name: str) -> Any | None:
        """What was noted beside a checkpoint, or None where it cannot be read."""
        try:
            return self._manager.metadata(step).custom_metadata[name]
        except Exception:  # As for damaged states.
            return None

    def restore(self, like: Any, best: bool = False) -> Any | None:
        """The newest state that can be read, with the structure, shapes and shardings of `like`; None where there is none.

        best: the state of least loss, where one was saved with a loss.
        A damaged checkpoint is passed over for the one before it, with a warning that names it. Raises InputError when
        a checkpoint is of another model, and when checkpoints exist and none can be read; and RunFailed where memory does
        not suffice, and in the one of several processes that cannot read the part that its devices hold, since others may
        have read theirs.
        """
        with self._failures_in_one_line():
            self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        order = sorted(steps, key=lambda step: step != self._manager.best_step()) if best else steps
        distributed.check_alike({f"the checkpoints of {self.directory}, in order": order})
        damaged: list[int] = []
        for step in order:
            try:
                state = self._read(step, like)
            except _Unreadable as why:
                logging.warning("checkpoint %s/%d cannot be read (%s)", self.directory, step, why)
                damaged.append(step)
            else:
                self._damaged = [bad for bad in damaged if bad > step]
                return state
        if steps:
            raise InputError(
                f"{self.directory}: no checkpoint can be read (steps {steps}); move it away to start again"
            )
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames them rather than deleting them: what could not be read may have been the disk's fault of that hour."""
        if jax.process_index() == 0:
            for step in steps:
                aside = self.directory / f"unread-{step}"
                shutil.rmtree(aside, ignore_errors=True)  # What was set aside as this step before.
                (self.directory / str(step)).rename(aside)
                logging.warning("checkpoint %s/%d, which cannot be read, is now %s", self.directory, step, aside.name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager.reload()

    def _read(self, step: int, like: Any) -> Any:
        """The state of a step; raises _Unreadable where it is damaged, else as `restore` does."""
        found = ""
        with distributed.together():
            try:
                self._check_shapes(step, like)
            except InputError:
                raise
            except Exception as error:  # Orbax raises many kinds for damaged files.
                self._check_allowed(step, error)
                found = _reason(error)
        # What one process cannot tell the contents of, none begins to read.
        if why := next(filter(None, distributed.exchange(found)), ""):
            raise _Unreadable(why)
        try:
            state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:
            if distributed.of_another(error):
                raise
            if out_of_memory(error):
                raise RunFailed(f"{self.directory}/{step}: no memory to read it ({_reason(error)})") from error
            self._check_allowed(step, error)
            if jax.process_count() > 1:
                raise RunFailed(
                    f"{self.directory}/{step}: process {jax.process_index()} cannot read its part ({_reason(error)}), "
                    "and all must go on from one step; remove this checkpoint and start them again"
                ) from error
            raise _Unreadable(_reason(error)) from error
        # Orbax notices files that are cut short, but no bit that has turned in an array.
        (bits, _), saved = sum_of_bits(state), self._noted(step, "sum_of_bits")
        if any(distributed.exchange("" if saved in (None, bits) else "another")):
            raise _Unreadable("its arrays are not what was saved")
        return state

    def _check_allowed(self, step: int, error: Exception) -> None:
        """Raises RunFailed where the right to read is missing, which makes no checkpoint a damaged one."""
        # Where a library has wrapped the error, by its words.
        if isinstance(error, PermissionError) or re.search("permission.denied", str(error), re.IGNORECASE):
            raise RunFailed(f"{self.directory}/{step}: this user may not read it ({_reason(error)})") from error

    def _check_shapes(self, step: int, like: Any) -> None:
        there, asked = _shapes(self._manager.item_metadata(step).tree), _shapes(like)
        differing = [name for name in {**asked, **there} if there.get(name) != asked.get(name)]
        if differing:
            shown = [f"{name} ({there.get(name, 'none')} there, {asked.get(name, 'none')} asked)" for name in differing]
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            raise InputError(
                f"{self.directory}/{step}: holds another model, differing in {', '.join(shown[:3])}{more}; "
                "choose another workdir"
            )

    def _drop_damaged(self, name: str, whole: Callable[[bytes], bool], what: str) -> None:
        """Removes the file of this name from every checkpoint where it is not whole; it counts as one without `what`.

        What is still being saved has another name.
        """
        for file in (self.directory / str(step) / name for step in steps_in(self.directory)):
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                continue  # Another process of the run has done it.
            if not whole(content):
                logging.warning("%s cannot be read; the checkpoint counts as one without %s", file, what)
                file.unlink(missing_ok=True)

    @contextmanager
    def _failures_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except RunFailed:
            raise
        except Exception as error:
            if distributed.of_another(error):
                raise
            raise RunFailed(
                f"{self.directory}: a checkpoint cannot be written ({_reason(error)}); last good checkpoint: "
                f"{max(self._manager.all_steps(read=True), default='none')}"
            ) from error


def steps_in(directory: Path) -> set[int]:
    """The steps of which a directory holds checkpoints."""
    return {int(path.name) for path in directory.glob("*") if path.name.isdecimal()}


def _holds_loss(content: bytes) -> bool:
    try:
        float(json.loads(content)["loss"])
    except (ValueError, KeyError, TypeError):
        return False
    return True


def _holds_known_notes(content: bytes) -> bool:
    """Whether Orbax opens the notes: it survives what is no JSON, but no key that it does not know."""
    try:
        return set(json.loads(content)) <= NOTES
    except (ValueError, TypeError):
        return True


def _negative_loss(metrics: dict[str, float]) -> float:
    return -metrics["loss"]


def _not_of_orbax(record: LogRecord) -> bool:
    return "orbax" not in record.pathname


def _reason(error: Exception) -> str:
    """The operating system's words where they are somewhere in the message, else its first line without the details."""
    found = re.search(r"([^:]+) \[os_error_code=", str(error))
    first = found[1].strip() if found else first_line(error)
    return textwrap.shorten(first.partition(" [")[0], 200) or type(error).__name__


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path and shape of every array, whether the containers on the way are tuples or, as on disk, lists and dictionaries."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", "")))) for part in path)
