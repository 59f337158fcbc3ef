"""Two real processes of four CPU devices each make one run, through the commands and over the network of this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from processes import CONTEXT, start

from diffad_jax import distributed
from diffad_jax.checkpoint import Checkpoints
from diffad_jax.detector import load
from diffad_jax.errors import InputError, RunFailed, out_of_memory
from experiments import cli

CONFIG = """
import tiny

def get_config(folder):
    config = tiny.get_config(folder)
    config.mesh = {"fsdp": 8}
    config.model.width = 256
    config.training.validation_rows = 20
    config.scoring.calibration_rows = 50
    config.scoring.batch_size = 32
    return config
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """--config of a network with arrays large enough to be split over both processes, on normals of 12 features."""
    folder = tmp_path_factory.mktemp("data")
    x = np.random.default_rng(0).normal(size=(300, 12))
    np.savez(folder / "rows.npz", X=x, y=(np.arange(300) % 10 == 0).astype(int))
    file = folder / "config.py"
    file.write_text(CONFIG)
    return (f"--config={file}:{folder}",)


def free_port() -> int:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        pytest.skip(f"no sockets here: {error}")


def joined_and_stopped(port: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    distributed.join(f"127.0.0.1:{port}", 1, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_sigterm_ends_a_process_of_several_outside_the_training_loop() -> None:
    process = CONTEXT.Process(target=joined_and_stopped, args=(free_port(),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGTERM


def start_two(module: str, output: Path, *arguments: str, second: tuple[str, ...] = ()) -> list[BaseProcess]:
    """second: arguments of the second process that come after, and so override, those of both."""
    port = free_port()
    return [
        start(
            module,
            *arguments,
            *(second if i else ()),
            *(f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"),
            output=output / str(i),
            devices=4,
        )
        for i in range(2)
    ]


def ended(processes: list[BaseProcess], output: Path, seconds: float = 240) -> list[int | None]:
    """The exit codes; fails with what was printed where one does not end."""
    try:
        for process in processes:
            process.join(seconds)
        codes = [process.exitcode for process in processes]
        assert None not in codes, [(output / str(i) / "err").read_text()[-2000:] for i in range(2)]
        return codes
    finally:
        for process in processes:
            process.kill()


def wait_for_line(log: Path) -> None:
    for _ in range(2400):
        if log.exists() and log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no line in {log}")


@pytest.fixture(scope="module")
def workdirs(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The work directories of the same run, made by one process of one device and by two of four."""
    folder = tmp_path_factory.mktemp("runs")
    one = start(
        "experiments.train", *arguments, "--config.mesh.fsdp=1", f"--workdir={folder / 'one'}", output=folder, devices=1
    )
    one.join()
    two = start_two("experiments.train", folder, *arguments, f"--workdir={folder / 'two'}")
    assert [one.exitcode, *ended(two, folder)] == [0, 0, 0], [(folder / d / "err").read_text() for d in (".", "0", "1")]
    return {"one": folder / "one", "two": folder / "two"}


def test_two_processes_train_what_one_trains(workdirs: dict[str, Path]) -> None:
    one, two = (load(workdirs[name]) for name in ("one", "two"))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert max(leaf.size for leaf in jax.tree.leaves(two.params)) >= 2**16
    # Scored and calibrated by both together.
    np.testing.assert_allclose(one.statistics.threshold, two.statistics.threshold, rtol=1e-3)
    np.testing.assert_allclose(one.statistics.judge.mean, two.statistics.judge.mean, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_train_the_same_by_pmap(
    arguments: tuple[str, ...], workdirs: dict[str, Path], tmp_path: Path
) -> None:
    by_pmap = ("--config.parallel=pmap", "--config.mesh.fsdp=1", f"--workdir={tmp_path / 'run'}")
    two = start_two("experiments.train", tmp_path, *arguments, *by_pmap)
    assert ended(two, tmp_path) == [0, 0], [(tmp_path / str(i) / "err").read_text() for i in range(2)]
    one, two_of_four = load(workdirs["one"]), load(tmp_path / "run")
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two_of_four.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_both_processes_save_and_only_one_of_them_writes_the_log(workdirs: dict[str, Path]) -> None:
    newest = workdirs["two"] / "checkpoints" / "20"
    assert {path.name for path in newest.rglob("ocdbt.process_*")} == {"ocdbt.process_0", "ocdbt.process_1"}
    logs = [[json.loads(line) for line in (workdirs[name] / "log.jsonl").open()] for name in ("one", "two")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for one, two in zip(*logs, strict=True):
        for key in ("loss", "validation_loss"):
            np.testing.assert_allclose(one.get(key, 0), two.get(key, 0), rtol=1e-4)
    errors = [(workdirs["two"].parent / str(i) / "err").read_text() for i in range(2)]
    assert "20/20" in errors[0] and "20/20" not in errors[1]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (("--config.optimizer.learning_rate=0.01",), "config.optimizer.learning_rate (0.002 in process 0, 0.01)"),
        pytest.param(("--workdir={}/other",), "--workdir", marks=pytest.mark.slow),
        pytest.param(("--config.data.path={}/other",), "its training rows", marks=pytest.mark.slow),
        pytest.param(("--config.data.path={}/gone",), "gone: no such file or folder", marks=pytest.mark.slow),
    ],
)
def test_processes_that_are_not_started_alike_are_refused(
    arguments: tuple[str, ...], tmp_path: Path, second: tuple[str, ...], words: str
) -> None:
    (tmp_path / "other").mkdir()
    np.savez(
        tmp_path / "other" / "rows.npz", X=np.random.default_rng(1).normal(size=(300, 12)), y=np.arange(300) % 10 == 0
    )
    other = tuple(argument.format(tmp_path) for argument in second)
    two = start_two("experiments.train", tmp_path, *arguments, f"--workdir={tmp_path / 'run'}", second=other)
    assert ended(two, tmp_path) == [2, 2]
    for i in range(2):
        (*_, last) = (tmp_path / str(i) / "err").read_text().splitlines()
        assert last.startswith("error: ") and words in last, last
    assert not (tmp_path / "run").exists()


def agreeing(folder: Path, port: int, number: int) -> None:
    """What one of two processes hears where they disagree, as JSON."""
    heard = {}

    def note(name: str, function: Callable[[], object]) -> None:
        try:
            heard[name] = function()
        except (InputError, RunFailed) as error:
            heard[name] = ("failed: " if isinstance(error, RunFailed) else "") + str(error)

    def refuse_in_process_1() -> None:
        with distributed.together():
            if number == 1:
                raise InputError("rows.npz: gone")

    def share(directory: Path) -> None:
        distributed.check_shared(directory)

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, cluster_detection_method="deactivate")
    note("exchange", lambda: distributed.exchange("one" * 2000 * number))
    note("alike", lambda: distributed.check_alike({"seed": 0, "rows": [1, 2]}))
    note("not alike", lambda: distributed.check_alike({"seed": number, "rows": [1, 2]}))
    note("together", refuse_in_process_1)
    note("shared", lambda: share(folder / "shared"))
    with mock.patch.object(distributed, "VISIBLE_SECONDS", 1):
        note("not shared", lambda: share(folder / f"own {number}"))
    full = mock.patch.object(Path, "write_text", side_effect=OSError(28, "No space left on device"))
    with full if number == 1 else nullcontext():
        note("full", lambda: share(folder / "shared"))
    with Checkpoints(folder / f"checkpoints {number}") as checkpoints:
        note("checkpoints", lambda: checkpoints.restore({"a": jnp.zeros(2)}))
    (folder / f"{number}.json").write_text(json.dumps(heard))
    jax.distributed.shutdown()


def test_what_one_process_refuses_all_refuse(tmp_path: Path) -> None:
    for number, steps in enumerate([(1, 2), (1,)]):
        with Checkpoints(tmp_path / f"checkpoints {number}") as checkpoints:
            for step in steps:
                checkpoints.save(step, {"a": jnp.zeros(2)})
    port = free_port()
    two = [CONTEXT.Process(target=agreeing, args=(tmp_path, port, i)) for i in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first["exchange"] == second["exchange"] == ["", "one" * 2000]
    assert first["alike"] is second["alike"] is first["shared"] is second["shared"] is None
    assert first["not alike"] == second["not alike"]
    assert first["not alike"].startswith("process 1 differs from process 0 in seed (0 in process 0, 1)")
    assert (first["together"], second["together"]) == ("process 1: rows.npz: gone", "rows.npz: gone")
    assert first["not shared"] == f"process 1: {second['not shared']}" and "own 1: is not" in second["not shared"]
    assert first["checkpoints"].startswith("process 1 differs from process 0 in the checkpoints of ")
    # A full disk is no bad input, in none of them.
    assert second["full"].startswith("failed: ") and "No space left on device" in second["full"]
    assert first["full"] == f"failed: process 1: {second['full'].removeprefix('failed: ')}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "counts", "words"),
    [((1, 3), (2, 2), "devices: the processes have 1, 3"), ((1, 1), (2, 3), "--num_processes (2 in process 0, 3)")],
)
def test_uneven_devices_and_counts_are_refused(
    arguments: tuple[str, ...], tmp_path: Path, devices: tuple[int, int], counts: tuple[int, int], words: str
) -> None:
    port = free_port()
    run = ("experiments.train", *arguments, f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{port}")
    two = [
        start(*run, f"--num_processes={n}", f"--process_id={i}", output=tmp_path / str(i), devices=d)
        for i, (d, n) in enumerate(zip(devices, counts, strict=True))
    ]
    assert ended(two, tmp_path) == [2, 2]
    assert words in (tmp_path / "0" / "err").read_text()


def meeting_late(port: int, number: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    distributed.join(f"127.0.0.1:{port}", 2, number)
    time.sleep(35 * number)
    assert distributed.exchange(str(number)) == ["0", "1"]
    jax.distributed.shutdown()


@pytest.mark.slow
def test_a_process_whose_data_take_half_a_minute_more_is_waited_for() -> None:
    port = free_port()
    two = [CONTEXT.Process(target=meeting_late, args=(port, i)) for i in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]


def test_a_command_of_one_process_is_not_started_twice() -> None:
    environment = os.environ | {"JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "experiments.score", "--workdir=run", "--input=x.npz", "--out=out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "error: this command is one process" in done.stderr


@pytest.mark.slow  # Ten seconds where a sum fails, a minute where the heartbeat has to.
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_dies_ends_the_others(arguments: tuple[str, ...], tmp_path: Path, victim: int) -> None:
    steps = ("--config.training.num_steps=1000000", "--config.training.log_every=1")
    two = start_two("experiments.train", tmp_path, *arguments, *steps, f"--workdir={tmp_path / 'run'}")
    wait_for_line(tmp_path / "run" / "log.jsonl")
    os.kill(two[victim].pid or 0, signal.SIGKILL)
    codes = ended(two, tmp_path, seconds=100)
    error = (tmp_path / str(1 - victim) / "err").read_text()
    assert codes[1 - victim] not in (0, None) and codes[victim] == -signal.SIGKILL
    # JAX or Orbax raise an error, which becomes our line, or the service that JAX joins processes with ends the process; in
    # one of a hundred deaths gloo does, from a thread of its own, as a rank whose neighbour failed goes on to its next sum.
    told = ("failed, most likely because one of them did", "another task died", "gloo::EnforceNotMet")
    assert any(words in error for words in told), error[-2000:]


def wait_in_vain(folder: Path, port: int) -> None:
    """A command of a run of several processes, in which Orbax waits for one that does not come."""

    def main(argv: list[str]) -> None:
        timeout = TimeoutError("Timed out while waiting for async_write_complete barrier.")
        with (
            Checkpoints(folder) as checkpoints,
            mock.patch.object(orbax.checkpoint.CheckpointManager, "wait_until_finished", side_effect=timeout),
        ):
            checkpoints.restore({})

    os.dup2(os.open(folder / "err", os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["command", f"--coordinator=127.0.0.1:{port}", "--num_processes=1", "--process_id=0"]
    cli.distributed_flags()
    cli.run(main)


def test_waiting_in_vain_for_a_process_is_told_as_its_death(tmp_path: Path) -> None:
    process = CONTEXT.Process(target=wait_in_vain, args=(tmp_path, free_port()))
    process.start()
    process.join()
    assert process.exitcode == 1
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert "error: the work with the other processes failed" in last and "async_write_complete" in last


def evaluated(workdir: Path, output: Path, *options: str) -> list[dict[str, float]]:
    """The metrics of a run as two processes find them, and as one does."""
    found, arguments = [], (f"--workdir={workdir}", *options)
    for start_all in (
        lambda: start_two("experiments.evaluate", output, *arguments),
        lambda: [start("experiments.evaluate", *arguments, output=output / "0")],
    ):
        assert set(ended(start_all(), output)) == {0}, (output / "0" / "err").read_text()
        found.append(json.loads((workdir / "metrics.json").read_text()))
    return found


@pytest.mark.slow
def test_two_processes_evaluate_what_one_evaluates(workdirs: dict[str, Path], tmp_path: Path) -> None:
    two, one = evaluated(workdirs["two"], tmp_path, "--baselines=iforest")
    for name in ("auroc", "aupr", "fpr95"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4)
    assert (tmp_path / "1" / "out").read_text().count("iforest") == 0


REMEMBERING = """
import tiny

def get_config():
    config = tiny.get_config()
    config.score.update({"num_draws": 2, "bias": True, "gradients": True})
    config.scoring.combination = "COMBINATION"
    return config
"""


@pytest.mark.slow
@pytest.mark.parametrize("combination", ["memory", "fisher"])
def test_two_processes_remember_what_one_remembers(combination: str, tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text(REMEMBERING.replace("COMBINATION", combination))
    train = ("experiments.train", f"--config={file}")
    odd = "--config.scoring.batch_size=30"  # which eight devices cannot share
    alone = start(*train, odd, f"--workdir={tmp_path / 'one'}", output=tmp_path / "0", devices=1)
    assert ended([alone], tmp_path) == [0], (tmp_path / "0" / "err").read_text()
    together = start_two(train[0], tmp_path, train[1], f"--workdir={tmp_path / 'two'}")
    assert ended(together, tmp_path) == [0, 0], (tmp_path / "1" / "err").read_text()
    np.testing.assert_allclose(*(load(tmp_path / name).statistics.threshold for name in ("one", "two")), rtol=1e-3)
    for name, options in (("two", ()), ("one", ("--batch_size=32",))):
        two, one = evaluated(tmp_path / name, tmp_path, "--baselines=", *options)
        np.testing.assert_allclose(two["auroc"], one["auroc"], rtol=1e-4)


@pytest.mark.slow
def test_a_part_that_one_process_cannot_read_ends_both(
    arguments: tuple[str, ...], workdirs: dict[str, Path], tmp_path: Path
) -> None:
    run = ("experiments.train", tmp_path, *arguments, f"--workdir={tmp_path / 'run'}")
    shutil.copytree(workdirs["two"], tmp_path / "run")
    (tmp_path / "run" / "statistics.npz").unlink()
    damaged = tmp_path / "run" / "checkpoints" / "20"
    largest = max(damaged.rglob("ocdbt.process_1/d/*"), key=lambda part: part.stat().st_size)
    largest.write_bytes(bytes(200) + largest.read_bytes()[200:])
    assert ended(start_two(*run), tmp_path) == [1, 1]  # type: ignore[arg-type]
    told = [(tmp_path / str(i) / "err").read_text() for i in range(2)]
    assert any(f"error: {damaged}: process" in one and "remove this checkpoint" in one for one in told), told
    shutil.rmtree(damaged)
    assert ended(start_two(*run), tmp_path) == [0, 0]  # type: ignore[arg-type]
    like, again = load(workdirs["two"]), load(tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), like.params, again.params)


@pytest.mark.slow
def test_a_batch_that_the_devices_cannot_share_is_refused_before_training(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    spoilt = (*arguments, "--config.scoring.batch_size=30", f"--workdir={tmp_path / 'run'}")
    assert ended(start_two("experiments.train", tmp_path, *spoilt), tmp_path) == [2, 2]
    assert "config.scoring.batch_size: found 30, allowed are multiples of the 8" in (tmp_path / "0" / "err").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_they_go_on(
    arguments: tuple[str, ...], workdirs: dict[str, Path], tmp_path: Path
) -> None:
    run = ("experiments.train", tmp_path, *arguments, "--config.training.log_every=1", f"--workdir={tmp_path / 'run'}")
    two = start_two(*run)  # type: ignore[arg-type]
    wait_for_line(tmp_path / "run" / "log.jsonl")
    os.kill(two[1].pid or 0, signal.SIGTERM)
    assert ended(two, tmp_path) == [143, 143]
    assert ended(start_two(*run), tmp_path) == [0, 0]  # type: ignore[arg-type]
    like = load(workdirs["two"])
    again = load(tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), like.params, again.params)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coordinator": "host:1"}, "allowed are all three or none of them"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "--coordinator: found 'host'"),
        ({"coordinator": "host:a", "num_processes": 2, "process_id": 0}, "allowed is HOST:PORT"),
        ({"coordinator": "host:65536", "num_processes": 2, "process_id": 0}, "allowed is HOST:PORT"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "--process_id: found 2, allowed are 0 to 1"),
        ({"coordinator": "host:1", "num_processes": 0, "process_id": 0}, "--num_processes: found 0, allowed are whole"),
    ],
)
def test_processes_that_cannot_be_joined_are_refused(arguments: dict[str, str | int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        distributed.join(**arguments)  # type: ignore[arg-type]


def test_a_file_that_may_not_be_read_is_bad_input() -> None:
    with pytest.raises(InputError, match="^rows.npz: Permission denied$"), distributed.together():
        raise PermissionError(13, "Permission denied", "rows.npz")


def test_processes_that_cannot_meet_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = mock.Mock(side_effect=jax.errors.JaxRuntimeError("UNKNOWN: Failed to start RPC server\nmore"))
    monkeypatch.setattr(jax.distributed, "initialize", failing)
    with pytest.raises(RunFailed, match=r"cannot meet \(UNKNOWN: Failed to start RPC server\)$"):
        distributed.join(f"127.0.0.1:{free_port()}", 2, 1)


def test_processes_that_compute_otherwise_are_told_apart() -> None:
    alike = distributed.arithmetic()
    assert alike == distributed.arithmetic() and alike["JAX"] == jax.__version__
    with jax.enable_x64(True):
        assert distributed.arithmetic() != alike
    with jax.threefry_partitionable(False):
        assert distributed.arithmetic() != alike


def test_a_port_that_another_program_holds_is_refused() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be used here \\(Address already in use\\)"):
            distributed.join(f"127.0.0.1:{port}", 2, 0)


def test_the_environment_names_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **timeouts: calls.append(given))
    distributed.join()
    assert calls == []
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[01-02]")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.join()
    assert calls == []
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(InputError, match="SLURM_NTASKS: found 2, but SLURM_JOB_ID, SLURM_PROCID, .* are not set"):
        distributed.join()
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    distributed.join()
    assert calls == [()] and distributed.named_by_environment()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2x")
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS: found '2x'"):
        distributed.join()
    # A shell in an allocation of two tasks, which is a step of one.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    distributed.join()
    assert calls == [()] and not distributed.named_by_environment()
    monkeypatch.setattr(distributed, "_on_tpu", lambda: True)
    distributed.join()
    assert calls == [(), ()], "a TPU slice"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "pod-0.service:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    distributed.join()
    assert calls[2:] == [("pod-0.service:1234", 4, 3)]
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(InputError, match="JAX_PROCESS_ID: found 'x'"):
        distributed.join()


def test_slurm_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert not distributed.named_by_environment()


def test_tpu_chips_count_where_jax_is_to_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(distributed, "find_spec", lambda name: True)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not distributed._on_tpu()
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert distributed._on_tpu()


def test_lack_of_memory_is_not_the_death_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert not distributed.of_another(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert distributed.of_another(jax.errors.JaxRuntimeError("UNAVAILABLE: connection closed"))
    assert out_of_memory(MemoryError())
