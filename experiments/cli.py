"""How every command starts: flags in, one clear line and an exit code out.

Exit codes: 0 success, 1 the run failed (it diverged, the disk is full, another process died), 2 bad input, 143 and 130
stopped by SIGTERM or SIGINT, while training with its state saved: the same command goes on.
"""

import argparse
import gc
import io
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from diffad_jax import distributed
from diffad_jax.console import say
from diffad_jax.data.adbench import adbench_names
from diffad_jax.errors import InputError, RunFailed, check_choice, first_line, out_of_memory, suggestion
from diffad_jax.loop import Stopped
from diffad_jax.ranges import OPTIONAL_SECTIONS

# The flags that this file defines are those of the command that asks for them, in its --help and among its names.
flags.disclaim_key_flags()

_configs: dict[str, str | None] = {}  # the flags that name a config file, with their defaults


def config_flag(
    default: str | None = None, name: str = "config", help: str = "Config file of the run."
) -> flags.FlagHolder:
    """Defines --config FILE[:ARGUMENT]; --config.section.key=value sets what the file holds or leaves at its default."""
    _configs[name] = default
    # ml_collections would read a default, with what the command line sets in it, when the flag is defined: while importing.
    help = f"{help} By default {default}." if default else help
    return config_flags.DEFINE_config_file(name, None, help, lock_config=False, accept_new_attributes=True)


def distributed_flags() -> None:
    """Defines the flags that make a command one of several processes; see `distributed.join`."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several processes make one run.")
    flags.DEFINE_integer("num_processes", None, "How many processes make the run.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a command's second run starts at once; not where nobody has a home."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "diffad_jax", "xla")
    if (folder := os.environ.get("JAX_COMPILATION_CACHE_DIR", default)).startswith("~"):
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def run(main: Callable[[list[str]], None]) -> None:
    """absl's app.run, with errors of the user's own making as one line on standard error."""

    def parse(argv: list[str]) -> list[str]:
        for name, default in _configs.items():
            argv = _with_config(argv, name, default)
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            _fail(f"--{error.flagname}: no such flag; {suggestion(error.flagname, _flag_names())}")
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            _fail(re.sub(r"\s+", " ", str(error.args[0] if error.args else error)))

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"{argv[1]}: unexpected argument; flags have the form --name=value")
        for name in _flag_names():
            if flags.FLAGS[name].value == "":
                _fail(f"--{name}: found '', allowed is a value")
        gc.freeze()
        gc.enable()
        if isinstance(sys.stdout, io.TextIOWrapper):  # it may be closed
            sys.stdout.reconfigure(errors="backslashreplace")
        use_compilation_cache()
        # Orbax tells of every save at level info.
        logging.set_verbosity(logging.WARNING)
        sys.unraisablehook = _tell_unless_late
        try:
            if "coordinator" in flags.FLAGS:
                names = ("coordinator", "num_processes", "process_id")
                distributed.join(**{name: flags.FLAGS[name].value for name in names})
            elif distributed.named_by_environment():
                _fail(
                    "this command is one process, and the environment (JAX_NUM_PROCESSES, SLURM_*) tells of several: start "
                    "it once, without them (env -u JAX_NUM_PROCESSES ...)"
                )
            main(argv)
        except InputError as error:
            _fail(str(error))
        except RunFailed as error:
            _fail(str(error), code=1)
        except Stopped as stopped:
            say(stopped)
            sys.exit(stopped.exit_code)
        except KeyboardInterrupt:
            say("stopped by SIGINT")
            _leave(130)
        except Exception as error:
            if distributed.of_another(error):
                _fail(
                    "the work with the other processes failed, most likely because one of them did "
                    f"({first_line(error)})",
                    code=1,
                )
            if out_of_memory(error):
                _fail(
                    f"out of memory ({first_line(error)}); less takes a smaller batch_size of config.training or "
                    "config.scoring (of a trained run: --batch_size), more passes of config.training.accumulate, "
                    "config.model.remat, or config.mesh.fsdp on several devices",
                    code=1,
                )
            if _finds_no_platform(error):
                _fail(f"JAX_PLATFORMS: found {os.environ['JAX_PLATFORMS']!r}, of which JAX finds none here")
            if isinstance(error, OSError):
                # Of the machine rather than of the user: no room, no right to write, a network disk that went away.
                unnamed = "standard output" if isinstance(error, BrokenPipeError) else "a file or standard output"
                _fail(f"{error.filename or unnamed}: {error.strerror or error}", code=1)
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            _leave(1)

    app.run(guarded, flags_parser=parse)


def chosen_rows(data_dir: str, rows: Sequence[str] = (), flag: str = "data_dir") -> list[str]:
    """The data sets of the folder that a flag names, those of --rows, with their sub-folder or without; all by default."""
    names = adbench_names(data_dir)
    if not names:
        raise InputError(f"--{flag}: {data_dir} holds no .npz file")
    for row in rows:
        if row not in set(names) | {name.split("/")[-1] for name in names}:
            raise InputError(f"--rows: found {row!r}; {suggestion(row, names)}")
    return [name for name in names if not rows or name in rows or name.split("/")[-1] in rows]


def chosen(flag: str, names: Sequence[str], known: Collection[str]) -> list[str]:
    """What a flag names, each once; raises InputError where that is not known."""
    for name in names:
        check_choice(f"--{flag}", name, known)
    return list(dict.fromkeys(names))


def counts(flag: str, values: Sequence[str]) -> list[int]:
    """What a flag lists, as whole numbers from 1; raises InputError where that is something else."""
    for value in values:
        if not (value.isdecimal() and int(value)):
            raise InputError(f"--{flag}: found {value!r}, allowed are whole numbers from 1")
    return [int(value) for value in values]


def check_file(flag: str, path: str | None) -> None:
    """Raises InputError where a flag names a file that cannot be made: before the work that it is to hold is done."""
    if path and (Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK)):
        raise InputError(f"--{flag}: found {path}, allowed is a file in a folder that can be written to")


def _finds_no_platform(error: Exception) -> bool:
    """Whether JAX finds none of the platforms that JAX_PLATFORMS names, which it may tell by an AssertionError."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return "JAX_PLATFORMS" in os.environ and last.filename.endswith("xla_bridge.py")


def _with_config(argv: list[str], flag: str, default: str | None) -> list[str]:
    """The arguments, the first of them the default config file where a config flag is not given.

    Fails on a config file that cannot be read and on a --config.section that no config has. What is built from a section
    knows, and checks, the keys that it may hold.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", nargs="?", dest="given")
    given = parser.parse_known_args(argv[1:])[0].given
    specified = default if given is None else given
    if specified is None:
        return argv
    file = Path(specified.partition(":")[0])
    if not file.is_file():
        there = [str(other) for other in sorted(file.parent.glob("[!_]*.py"))]
        hint = suggestion(str(file), there) if there else "the configs lie in the checkout, which is where to run this"
        _fail(f"--{flag}: {file} is no file; {hint}")
    try:
        config: Any = flags.FLAGS[flag].parser.parse(specified)
    except Exception as error:  # of the file's own code
        _fail(f"--{flag}={specified}: {error.__context__ or repr(error)}")
    # The one section that is a value, and so can be given where the file has none.
    sections = {**config, "parallel": "jit"}
    for override in (arg.partition("=")[0] for arg in argv if arg.startswith(f"--{flag}.")):
        _, section, *keys = override.split(".")
        if section not in sections:
            # ml_collections sets keys of sections that the file has.
            known = f"the file says nothing of it; allowed where it has config.{section} = {{}}"
            _fail(
                f"{override}: "
                + (known if section in OPTIONAL_SECTIONS else f"no such key; {suggestion(section, sections)}")
            )
        if keys and not isinstance(sections[section], ConfigDict):
            _fail(f"{override}: no such key; --{flag}.{section} has none below it")
        if len(keys) > 1:
            _fail(f"{override}: no such key; --{flag}.{section}.{keys[0]} has none below it")
    return [argv[0], f"--{flag}={specified}", *argv[1:]] if given is None else argv


def _flag_names() -> list[str]:
    """The flags that a user of this command may set: those of the command itself, not of the libraries."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return sorted(
        flag.name
        for module, those in flags.FLAGS.flags_by_module_dict().items()
        for flag in those
        if module in (sys.argv[0], main)
    )


def _tell_unless_late(unraisable: Any) -> None:
    """Hides one thing: the pending writes of a checkpoint that failed outlive the event loop that waited for them."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(message: str, code: int = 2) -> NoReturn:
    say(f"error: {message}")
    # What else was being written fails as well, and asyncio would tell of each in many lines.
    getLogger("asyncio").disabled = True
    warnings.simplefilter("ignore", RuntimeWarning)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends a failed process. Of several, at once: an orderly end waits for the others, and they wait for this one."""
    if jax.distributed.is_initialized():
        with suppress(OSError, ValueError, AttributeError):  # AttributeError: there is none
            sys.stdout.flush()
        if jax.process_index() == 0:
            time.sleep(2)  # It is where they meet: without it they would be ended before they can say why.
        os._exit(code)
    sys.exit(code)
