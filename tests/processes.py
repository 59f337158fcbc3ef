"""Other processes: commands as a user starts them, and JAX with another number of devices.

All are forked from one server that has the libraries loaded but has not yet asked JAX for its devices.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import jax

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["diffad_jax.runs", "diffad_jax.report", "diffad_jax.baselines", "experiments.cli"])


class Finished(NamedTuple):
    """How a command ended."""

    code: int | None
    out: str
    err: str


def start(module: str, *arguments: str, output: Path, devices: int = -1) -> BaseProcess:
    """Starts `python -m module arguments`; what it prints goes to the files out and err in `output`.

    devices: how many CPU devices JAX has there, instead of as many as the command wants.
    """
    output.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_main, args=(module, arguments, output, devices))
    process.start()
    return process


def command(module: str, *arguments: str, output: Path) -> Finished:
    """Runs `python -m module arguments` to its end."""
    process = start(module, *arguments, output=output)
    process.join()
    return Finished(process.exitcode, (output / "out").read_text(), (output / "err").read_text())


def with_devices(count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a process where JAX has that many CPU devices."""
    with ProcessPoolExecutor(1, CONTEXT, initializer=_set_devices, initargs=(count,)) as pool:
        return pool.submit(function, *arguments).result()


def _set_devices(count: int) -> None:
    jax.config.update("jax_num_cpu_devices", count)


def _main(module: str, arguments: tuple[str, ...], output: Path, devices: int) -> None:
    _set_devices(devices)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # Python's exit functions, in one of which JAX waits for the other processes of a run, are not called in a process
        # of multiprocessing.
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
