"""Runs of several processes, on one machine or many, that work on the same steps."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from diffad_jax.errors import InputError, out_of_memory

JOIN_SECONDS = 300
DEAD_SECONDS = 60
"""A process that was not heard of for so long counts as dead, and ends the others."""
REPORT_SECONDS = 3600
"""How long processes that are ready wait for the one that still writes."""


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes this process one of several, by the arguments or by the environment; does nothing where neither names others.

    coordinator: HOST:PORT at which process 0 can be reached. The environment may name the three as JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; under Slurm's srun and on a TPU slice JAX finds them itself. To be called before JAX
    is asked for its devices. Raises InputError where only some of the three are given, or they do not fit each other.
    """
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
            jax.distributed.initialize(**timeouts)
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            f"--coordinator, --num_processes, --process_id: found {coordinator}, {num_processes}, {process_id}; "
            "allowed are all three or none of them"
        )
    if ":" not in coordinator:
        raise InputError(f"--coordinator: found {coordinator!r}, allowed is HOST:PORT of process 0")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id: found {process_id}, allowed are 0 to {num_processes - 1}")
    # JAX ends a process that finds no others in C++, without saying where it looked.
    print(f"process {process_id} of {num_processes} joins {coordinator}, for {JOIN_SECONDS} s at most", file=sys.stderr)
    jax.distributed.initialize(
        coordinator, num_processes, process_id, cluster_detection_method="deactivate", **timeouts
    )


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
    """Whether srun started this process as one of several."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def _on_tpu() -> bool:
    """Whether this machine has TPU chips and JAX is to use them; a slice of one host makes a run of one process."""
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    chips = any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
    return "tpu" in wanted.split(",") and chips and find_spec("libtpu") is not None
