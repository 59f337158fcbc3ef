"""Runs of several processes, on one machine or many, that work on the same steps."""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffad_jax.console import say
from diffad_jax.errors import InputError, RunFailed, first_line, out_of_memory, unusable

JOIN_SECONDS = 300
DEAD_SECONDS = 60
"""A process that was not heard of for so long counts as dead, and ends the others."""
REPORT_SECONDS = 3600
"""How long processes that are ready wait for the one that still writes."""
VISIBLE_SECONDS = 90
"""How long a network disk may take to show one machine what another has written."""
BLOCK = 4096
OF_SLURM = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes this process one of several, by the arguments or by the environment; does nothing where neither names others.

    coordinator: HOST:PORT at which process 0 can be reached. The environment may name the three as JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; under Slurm's srun and on a TPU slice JAX finds them itself. To be called before JAX
    is asked for its devices. Raises InputError where only some of the three are given, or they do not fit each other.
    """
    # It would take SIGTERM for itself, so that none but the training loop, which has a handler of its own, could be ended.
    jax.config.update("jax_enable_preemption_service", False)
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID") if process_id is None else process_id
    timeouts: dict[str, Any] = {
        "initialization_timeout": JOIN_SECONDS,
        "heartbeat_timeout_seconds": DEAD_SECONDS,
        "shutdown_timeout_seconds": REPORT_SECONDS,
    }
    if coordinator is None and num_processes is None and process_id is None:
        if _by_slurm() or _on_tpu():
            _initialize(**timeouts)
            _meet(num_processes)
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            f"--coordinator, --num_processes, --process_id: found {coordinator}, {num_processes}, {process_id}; "
            "allowed are all three or none of them"
        )
    _, colon, port = coordinator.rpartition(":")
    if not (colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"--coordinator: found {coordinator!r}, allowed is HOST:PORT of process 0")
    if num_processes < 1:
        raise InputError(f"--num_processes: found {num_processes}, allowed are whole numbers from 1")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id: found {process_id}, allowed are 0 to {num_processes - 1}")
    if process_id == 0:
        _check_free(int(port))
    # JAX ends a process that finds no others in C++, without saying where it looked.
    say(f"process {process_id} of {num_processes} joins {coordinator}, for {JOIN_SECONDS} s at most")
    _initialize(coordinator, num_processes, process_id, cluster_detection_method="deactivate", **timeouts)
    _meet(num_processes)


def _initialize(*arguments: Any, **settings: Any) -> None:
    try:
        jax.distributed.initialize(*arguments, **settings)
    except (RuntimeError, ValueError) as error:
        raise RunFailed(f"the processes of the run cannot meet ({first_line(error)})") from error


def named_by_environment() -> bool:
    """Whether the environment makes this process one of several; on a TPU slice only JAX itself can tell."""
    return (_number("JAX_NUM_PROCESSES") or 1) > 1 or _by_slurm()


# --- what the processes of a run must agree on ------------------------------------------------------------------------------


def exchange(said: str) -> list[str]:
    """What every process says, by its number. All must ask at the same place of the program."""
    if jax.process_count() == 1:
        return [said]
    content = np.frombuffer(said.encode(errors="surrogateescape"), np.uint8)  # paths may be no UTF-8
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    if not lengths.any():
        return [""] * len(lengths)
    # Whole blocks, so that few shapes are compiled.
    padded = np.zeros(-(-int(lengths.max()) // BLOCK) * BLOCK, np.uint8)
    padded[: len(content)] = content
    each = multihost_utils.process_allgather(padded)
    return [bytes(line[:length]).decode(errors="surrogateescape") for line, length in zip(each, lengths, strict=True)]


@contextmanager
def together() -> Iterator[None]:
    """An InputError or RunFailed that one process raises inside is raised by all: none waits for one that has given up.

    A file that is not there or may not be read is an InputError as well. What is done inside must not itself wait for other
    processes. Another error ends this process alone, and the others when they miss it.
    """
    refused: InputError | RunFailed | None = None
    try:
        yield
    except (InputError, RunFailed) as error:
        refused = error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        refused = InputError(f"{error.filename or 'a file'}: {error.strerror or error}")
        refused.__cause__ = error
    kind = "failed" if isinstance(refused, RunFailed) else "refused"
    said = exchange(f"{kind} {refused}" if refused else "")
    if refused is not None:
        raise refused
    for process, words in enumerate(said):
        if words:
            kind, _, cause = words.partition(" ")
            raise (RunFailed if kind == "failed" else InputError)(f"process {process}: {cause}")


def check_alike(values: Mapping[str, Any]) -> None:
    """Raises InputError, on every process, where one has other values than process 0, which JSON can hold; names them."""
    first, *others = map(json.loads, exchange(json.dumps(values)))
    for process, other in enumerate(others, 1):
        if differing := [key for key in {**first, **other} if first.get(key) != other.get(key)]:
            shown = ", ".join(f"{key} ({first.get(key)!r} in process 0, {other.get(key)!r})" for key in differing)
            raise InputError(f"process {process} differs from process 0 in {shown}; all must be started alike")


def arithmetic() -> dict[str, Any]:
    """What of JAX's own settings and version the processes of a run must share, since their programs would be others."""
    names = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")
    return {"JAX": jax.__version__, **{name: getattr(jax.config, name) for name in names}}


def check_shared(directory: Path) -> None:
    """Raises InputError, on every process, where one sees another directory than process 0 or cannot write there."""
    if jax.process_count() == 1:
        return
    token, mark = exchange(uuid4().hex)[0], directory / ".processes"
    with together(), _refusing(directory):
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            mark.write_text(token)
    try:
        with together(), _refusing(directory):
            _wait_for(mark, token)
            own = directory / f".process-{jax.process_index()}"
            own.write_text(token)
            own.unlink()
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)


def _wait_for(mark: Path, token: str) -> None:
    end = time.monotonic() + VISIBLE_SECONDS
    while not (mark.exists() and mark.read_text() == token):
        if time.monotonic() > end:
            raise InputError(f"{mark.parent}: is not the directory of process 0; it must be on a disk that all share")
        time.sleep(0.2)


@contextmanager
def _refusing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unusable(f"{directory}: cannot be written", error) from error


def _check_free(port: int) -> None:
    """Raises InputError where another program holds a port, of which JAX would die without a word."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise InputError(
            f"--coordinator: port {port} cannot be used here ({os.strerror(error.errno or 0)}); choose another"
        ) from error


def _meet(told: int | None) -> None:
    """Raises InputError where processes have another number of devices, or were told of another number of processes.

    The first collective on CPUs waits 30 seconds for all: it is done here, where they have just met, not after data are read.
    """
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        found = ", ".join(str(counts[process]) for process in sorted(counts))
        raise InputError(f"devices: the processes have {found}, allowed is the same number in each")
    check_alike({"--num_processes": told})


def of_another(error: Exception) -> bool:
    """Whether this is how JAX's collectives, or Orbax where processes wait for each other, tell that another process died."""
    waited = isinstance(error, TimeoutError) and error.errno is None
    failed = isinstance(error, jax.errors.JaxRuntimeError) and not out_of_memory(error)
    return jax.distributed.is_initialized() and (waited or failed)


def _number(name: str) -> int | None:
    """The environment variable, where it is set."""
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise InputError(f"{name}: found {value!r}, allowed is a whole number")
    return int(value)


def _by_slurm() -> bool:
    """Whether srun started this process as one of several. A shell within an allocation is a step of one task.

    Raises InputError where not all is there by which JAX finds the others, as in a container that lets a part of it in.
    """
    name = "SLURM_STEP_NUM_TASKS" if os.environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    if "SLURM_STEP_NODELIST" not in os.environ or (_number(name) or 1) < 2:
        return False
    if missing := [other for other in OF_SLURM if other not in os.environ]:
        raise InputError(f"{name}: found {os.environ[name]}, but {', '.join(missing)} of srun's variables are not set")
    return True


def _on_tpu() -> bool:
    """Whether this machine has TPU chips and JAX is to use them; a slice of one host makes a run of one process."""
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    chips = any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
    return "tpu" in wanted.split(",") and chips and find_spec("libtpu") is not None
