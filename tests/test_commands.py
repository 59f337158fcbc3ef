"""The commands from outside: what they leave behind, what they refuse, and what a kill costs."""

import contextlib
import csv
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from processes import Finished, command, start, with_devices
from sklearn.metrics import roc_auc_score
from tiny import get_config

import experiments
from diffad_jax import detector, runs
from diffad_jax.calibration import Calibration
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.digits import digits
from diffad_jax.errors import InputError, RunFailed
from diffad_jax.evaluation import make_levels
from diffad_jax.statistics import Statistics

ROOT = Path(__file__).parents[1]
DIGITS, ADBENCH, TINY = (str(ROOT / path) for path in ("configs/digits.py", "configs/adbench.py", "tests/tiny.py"))
SMALL = [
    *("--config", DIGITS, "--config.model.channels=8", "--config.model.channel_multipliers=(1,)"),
    *("--config.model.norm_groups=4", "--config.training.num_steps=20", "--config.score.num_draws=1"),
    "--config.score.times=(0.5,0.6)",
]


def train(workdir: Path, *arguments: str) -> Finished:
    return command("experiments.train", "--workdir", str(workdir), *arguments, output=workdir.parent)


def evaluate(workdir: Path, *arguments: str) -> Finished:
    return command("experiments.evaluate", "--workdir", str(workdir), *arguments, output=workdir.parent)


def assert_refused(finished: Finished, *words: str) -> None:
    """Exit code 2 and one line on standard error that holds the words."""
    assert finished.code == 2, finished
    assert finished.err.startswith("error: ") and len(finished.err.strip().splitlines()) == 1, finished.err
    assert all(word in finished.err for word in words), finished.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The --config of a run of seconds: a small MLP on one set of vectors."""
    folder = tmp_path_factory.mktemp("vectors")
    np.savez(folder / "cluster.npz", X=np.random.default_rng(0).normal(size=(100, 5)), y=np.arange(100) > 80)
    return f"--config={TINY}:{folder}"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished, Finished]:
    """A work directory of the shipped digits config, made small, and how its two commands ended."""
    workdir = tmp_path_factory.mktemp("small") / "runs" / "digits"
    return workdir, train(workdir, *SMALL), evaluate(workdir)


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_train_and_evaluate_leave_metrics_report_and_logs(done: tuple[Path, Finished, Finished]) -> None:
    workdir, trained, evaluated = done
    assert trained.code == 0, trained.err
    assert evaluated.code == 0, evaluated.err
    metrics, dataset = json.loads((workdir / "metrics.json").read_text()), digits(anomalous_class=0)
    assert all(0 <= metrics[key] <= 1 for key in ("auroc", "aupr", "f1", "fpr95"))
    assert (metrics["n_train"], metrics["n_test"], metrics["seed"]) == (len(dataset.train), len(dataset.test), 0)
    assert metrics["seconds_train"] > 0 and metrics["seconds_score"] > 0
    assert metrics["network_evaluations_per_datum"] == 2  # Two noise levels, one draw each.
    report = (workdir / "report.html").read_text()
    assert all(text in report for text in ("iforest", "ocsvm", "copod", "knn", "data:image/png;base64", "num_steps"))
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20] and np.isfinite(log[0]["loss"])
    (events,) = (workdir / "tensorboard").glob("events.*")
    assert b"grad_norm" in events.read_bytes()
    assert str(workdir / "metrics.json") in evaluated.out and str(workdir / "report.html") in evaluated.out
    assert f"{100 * metrics['auroc']:.2f}" in evaluated.out
    assert "above the threshold (%)" in evaluated.out
    assert f"{100 * metrics['normals_above_threshold']:.2f}" in evaluated.out
    # What the score, which joins two tests, says without the second.
    run = detector.load(workdir)
    levels = make_levels(run.system, run.params, 0, 256)(run.statistics.transform.apply(dataset.test))
    calibration = run.statistics.judge
    assert isinstance(calibration, Calibration)
    errors = (levels - calibration.mean[:, None]) / calibration.scale[:, None]
    assert metrics["auroc_of_mean_error"] == pytest.approx(roc_auc_score(dataset.labels, errors.mean(axis=0)), abs=1e-4)
    assert f"{100 * metrics['auroc_of_mean_error']:.2f}" in evaluated.out and "mean error (UNet)" in report


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library than glibc")
def test_a_command_starts_once_more_with_large_pages_and_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=4")
    experiments._restart_with_large_pages()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1"
    assert calls == [(sys.executable, sys.orig_argv)]
    experiments._restart_with_large_pages()
    assert len(calls) == 1


def test_sets_that_share_their_normals_share_one_model(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    clean = draw.integers(0, 256, (40, 8, 8), np.uint8)
    for name, corrupted in (("fog", 5), ("shear", 9)):
        X = np.concatenate([clean, draw.integers(0, 256, (corrupted, 8, 8), np.uint8)])
        np.savez(tmp_path / f"{name}.npz", X=X, y=np.arange(len(X)) >= 40)
    data = f"--config.data={{'name': 'mnist_c', 'path': '{tmp_path}'}}"
    transform = "--config.transform={'name': 'range', 'low': 0.0, 'high': 255.0}"
    workdir = tmp_path / "run"
    assert train(workdir, f"--config={TINY}", data, transform).code == 0
    assert (workdir / "config.json").exists() and not list(workdir.glob("*/config.json"))
    assert evaluate(workdir, "--baselines=").code == 0
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert {name: test["n_test"] for name, test in metrics["tests"].items()} == {"fog": 25, "shear": 29}
    assert metrics["n_test"] == 54


def test_a_finished_run_is_left_alone(done: tuple[Path, Finished, Finished]) -> None:
    workdir, before = done[0], contents(done[0])
    again = train(workdir, *SMALL)
    assert again.code == 0 and contents(workdir) == before


def test_another_config_is_refused_in_the_same_work_directory(done: tuple[Path, Finished, Finished]) -> None:
    workdir, before = done[0], contents(done[0])
    refused = train(workdir, *SMALL, "--config.training.num_steps=30", "--config.seed=1")
    shown = ["config.training.num_steps (20 there, 30 asked)", "config.seed (0 there, 1 asked)", str(workdir)]
    assert_refused(refused, *shown)
    assert "config.model" not in refused.err and contents(workdir) == before


def test_other_data_are_scored_with_the_statistics_of_the_run(
    done: tuple[Path, Finished, Finished], tmp_path: Path
) -> None:
    workdir, dataset = done[0], digits(anomalous_class=0)
    own = json.loads((workdir / "metrics.json").read_text())
    report = (workdir / "report.html").read_bytes()
    # The run's own test rows without most of its normals: recall and the scores behind it cannot move.
    kept = np.concatenate([np.flatnonzero(dataset.labels == 0)[:50], np.flatnonzero(dataset.labels == 1)])[::-1]
    np.savez(tmp_path / "other.npz", X=dataset.test[kept, ..., 0], y=dataset.labels[kept])
    evaluated = evaluate(workdir, f"--data={tmp_path / 'other.npz'}", "--baselines=knn")
    assert evaluated.code == 0, evaluated.err
    found = json.loads((workdir / "metrics_other.json").read_text())
    expected = detector.load(workdir).score(dataset.test)
    normal, anomalous = expected[dataset.labels == 0][:50], expected[dataset.labels == 1]
    assert found["auroc"] == pytest.approx((anomalous[:, None] > normal).mean(), abs=1e-4)
    assert (found["n_test"], found["n_train"]) == (len(kept), own["n_train"])
    assert "metrics_other.json" in evaluated.out and "report_other.html" in evaluated.out
    assert json.loads((workdir / "metrics.json").read_text()) == own
    assert (workdir / "report.html").read_bytes() == report


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is Linux's")
def test_nobody_needs_to_read_what_a_run_says(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "err").symlink_to("/dev/full")
    run = ("experiments.train", tiny, f"--workdir={tmp_path / 'run'}", "--config.training.num_steps=5")
    for arguments, code in ((run, 0), ((*run, "--config.training.num_step=6"), 2)):
        process = start(*arguments, output=tmp_path)
        process.join()
        assert process.exitcode == code
    assert (tmp_path / "run" / "statistics.npz").exists()


def test_platforms_that_are_not_there_are_told(tiny: str, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "experiments.train", tiny, f"--workdir={tmp_path / 'run'}"]
    without = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cuda"})
    if without.returncode == 0:
        pytest.skip("there is a GPU here")
    assert without.returncode == 2 and without.stderr.startswith("error: JAX_PLATFORMS: found 'cuda', of which"), (
        without
    )
    assert without.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "kind", "code"), [(errno.ENOSPC, RunFailed, 1), (errno.EACCES, InputError, 2)])
def test_a_full_disk_is_no_bad_input(tmp_path: Path, number: int, kind: type[Exception], code: int) -> None:
    denied = OSError(number, os.strerror(number))
    with mock.patch.object(Path, "mkdir", side_effect=denied), pytest.raises(kind, match=os.strerror(number)):
        runs.train(get_config(), digits(0), tmp_path / "run", progress=False)


def test_a_folder_of_sets_gives_a_run_each_and_their_mean(tmp_path: Path) -> None:
    draw, folder, workdir = np.random.default_rng(0), tmp_path / "sets", tmp_path / "runs"
    folder.mkdir()
    for name, shift in (("near", 1.0), ("far", 6.0)):
        x = draw.normal(size=(80, 5)) + np.repeat([0.0, shift], [60, 20])[:, None]
        np.savez(folder / f"{name}.npz", X=x, y=np.repeat([0, 1], [60, 20]))
    data = ["--config", ADBENCH, f"--config.data.path={folder}"]
    trained = train(workdir, *data, "--config.training.num_steps=10", "--config.model.width=16")
    assert trained.code == 0, trained.err
    evaluated = evaluate(workdir, "--baselines=knn")
    assert evaluated.code == 0, evaluated.err
    auroc = {name: json.loads((workdir / name / "metrics.json").read_text())["auroc"] for name in ("near", "far")}
    assert auroc["far"] > 0.99 > auroc["near"] > 0.5
    mean = next(line.split() for line in evaluated.out.splitlines() if line.startswith("mean"))
    assert float(mean[1]) == pytest.approx(50 * (auroc["near"] + auroc["far"]), abs=0.01)
    assert (workdir / "report.html").exists()
    other = evaluate(workdir, "--baselines=", f"--data={folder / 'near.npz'}")
    assert other.code == 0 and "near on near" in other.out and "far on near" in other.out, other
    assert (workdir / "report_near.html").exists()
    # That the last of the runs has learnt other columns is told before the first is scored.
    shutil.copytree(workdir / "near", workdir / "odd")
    statistics = Statistics.load(workdir / "odd")
    statistics = replace(statistics, transform=statistics.transform._replace(shape=(4,)))
    statistics.save(workdir / "odd")
    before = contents(workdir)
    np.savez(tmp_path / "more.npz", X=x, y=np.repeat([0, 1], [60, 20]))
    odd = evaluate(workdir, "--baselines=", f"--data={tmp_path / 'more.npz'}")
    assert_refused(odd, "more.npz", "(5,)", "odd has learnt (4,)")
    assert contents(workdir) == before
    shutil.rmtree(workdir / "odd")

    # What else has the name of the data, and data of one kind alone.
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "far.npz", tmp_path / "elsewhere" / "near.npz")
    again = evaluate(workdir, "--baselines=", f"--data={tmp_path / 'elsewhere' / 'near.npz'}")
    assert_refused(again, "metrics_near.json", "holds the results of", str(folder / "near.npz"))
    np.savez(tmp_path / "elsewhere" / "normals.npz", X=x[:60], y=np.zeros(60, int))
    normals = (
        *data[:2],
        f"--config.data.path={tmp_path / 'elsewhere' / 'normals.npz'}",
        f"--workdir={workdir / 'plain'}",
    )
    assert command("experiments.train", *normals, "--config.training.num_steps=10", output=tmp_path / "o").code == 0
    rest = evaluate(workdir, "--baselines=")
    assert rest.code == 0 and f"{workdir / 'plain'}: left out" in rest.out and "far" in rest.out, rest
    assert str(workdir / "near" / "metrics.json") in rest.out and "plain/metrics.json" not in rest.out, rest
    assert_refused(evaluate(workdir / "plain", "--baselines="), "holds nothing to test on")
    shutil.rmtree(workdir / "plain")

    # Two runs of the same data are told apart, and the report says in what their configs differ.
    for name in ("one", "two"):
        shutil.copytree(workdir / "near", tmp_path / "pair" / name)
    config = tmp_path / "pair" / "two" / "config.json"
    config.write_text(config.read_text().replace('"batch_size": 1024', '"batch_size": 512'))
    pair = evaluate(tmp_path / "pair", "--baselines=")
    assert pair.code == 0 and "one on near" in pair.out and "two on near" in pair.out, pair
    report = (tmp_path / "pair" / "report.html").read_text()
    assert "<td>1024 | 512</td>" in report and report.count(" | ") == 1

    # A run knows what it was trained on, whatever its folder is called and whatever lies beside its data.
    shutil.copytree(workdir / "near", tmp_path / "moved")
    assert evaluate(tmp_path / "moved", "--baselines=").code == 0
    assert json.loads((tmp_path / "moved" / "metrics.json").read_text())["auroc"] == auroc["near"]
    (folder / "near.npz").rename(folder / "new.npz")
    assert_refused(evaluate(tmp_path / "moved", "--baselines="), "trained on near", "far, new")
    (folder / "far.npz").unlink()
    small = (*data, "--config.training.num_steps=10", "--config.model.width=16")
    assert_refused(train(workdir, *small), str(workdir), "runs in its folders")
    assert_refused(train(workdir / "near", *small), "was trained on near, not on new")
    np.savez(folder / "second.npz", X=x, y=np.repeat([0, 1], [60, 20]))
    assert_refused(train(workdir / "near", *small), str(workdir / "near"), "one run", "makes 2")

    # What is not finished is told before anything is scored.
    (workdir / "near" / "metrics.json").unlink()
    (workdir / "far" / "statistics.npz").unlink()
    assert_refused(evaluate(workdir, "--baselines="), str(workdir / "far" / "statistics.npz"), "not finished")
    assert not (workdir / "near" / "metrics.json").exists()


@pytest.mark.slow
def test_the_ablation_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    draw, folder = np.random.default_rng(0), tmp_path / "sets"
    folder.mkdir()
    x = draw.normal(size=(120, 6)) + np.repeat([0.0, 1.0], [80, 40])[:, None]
    np.savez(folder / "set.npz", X=x, y=np.repeat([0, 1], [80, 40]))
    flags = (f"--data_dir={folder}", f"--out={tmp_path / 'out'}", "--only=draws,score")
    ended = command("experiments.ablation", *flags, output=tmp_path / "output")
    assert ended.code == 0, ended.err
    with (tmp_path / "out" / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_ablation = {name: [row["auroc"] for row in rows if row["ablation"] == name] for name in ("draws", "score")}
    assert [len(found) for found in by_ablation.values()] == [5, 6]
    assert all(len(set(found)) > 2 for found in by_ablation.values()), by_ablation
    assert (tmp_path / "out" / "draws.png").exists() and (tmp_path / "out" / "score.png").exists()


def test_few_steps_are_compared_with_the_chain(done: tuple[Path, Finished, Finished], tmp_path: Path) -> None:
    def few_steps(*flags: str) -> Finished:
        few = ("--chain=4", "--steps=2,1", "--rows=40", f"--workdir={done[0]}")
        return command("experiments.few_steps", *few, *flags, output=tmp_path / "output")

    ended = few_steps(f"--out={tmp_path / 'found.json'}")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["ddpm 4", "ddim 2", "ddim 1"] and len({values["auroc"] for values in found.values()}) == 3
    assert all(line.split()[3] == f"{100 * v['auroc']:.2f}" for line, v in zip(ended.out.splitlines(), found.values()))
    assert_refused(few_steps("--time=0"), "--time: found 0", "above 0")
    assert_refused(few_steps(f"--out={tmp_path / 'none' / 'found.json'}"), "--out", "allowed is a file in a folder")


def baselines_beside() -> list[list[str]]:
    from absl import flags

    from experiments import evaluate  # not above: a process has one flag --workdir

    x, labels = np.random.default_rng(0).normal(size=(20, 3)), np.repeat([0, 1], 10)
    found = []
    for arguments in ([], ["--baselines=knn"]):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", "--workdir=w", *arguments])
        for most in (119, 120):
            evaluate.MOST_VALUES = most
            found.append(list(evaluate.beside(Dataset("set", x, x, labels), 0)))
    return found


def test_baselines_hold_no_large_data_in_memory_unless_asked_to() -> None:
    left_out, by_default, *asked = with_devices(1, baselines_beside)
    assert left_out == [] and {"iforest", "knn"} < set(by_default) and asked == [["knn"], ["knn"]]


def test_the_first_process_of_a_container_handles_sigterm_from_its_start() -> None:
    """Before anything of weight is imported; GLIBC_TUNABLES keeps it from starting again."""
    ending = """if True:
        import os, signal, sys
        os.getpid = lambda: 1
        sys.argv = ["-m"]
        import experiments
        assert "jax" not in sys.modules
        signal.raise_signal(signal.SIGTERM)"""
    ended = subprocess.run(
        [sys.executable, "-c", ending], cwd=ROOT, env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    )
    assert ended.returncode == 143


def ended_by_lack_of_memory() -> tuple[object, str]:
    from experiments import cli

    def main(_: list[str]) -> None:
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.\nDetails"
        )

    sys.argv, told = ["train"], io.StringIO()
    with contextlib.redirect_stderr(told), pytest.raises(SystemExit) as ended:
        cli.run(main)
    return ended.value.code, told.getvalue()


def test_lack_of_memory_is_one_line_that_tells_what_to_change() -> None:
    code, told = with_devices(1, ended_by_lack_of_memory)
    assert code == 1 and told.startswith("error: out of memory") and told.count("\n") == 1
    assert "allocate 99 bytes" in told and "Details" not in told and "config.model.remat" in told


# --- what is refused -------------------------------------------------------------------------------------------------

BAD_TRAINING = {
    "a misspelt group": (["--config.modl.width=8"], ["--config.modl.width", "'model'"]),
    "a misspelt key": (["--config.model.widht=8"], ["config.model.widht", "'width'"]),
    "a key of a number": (["--config.seed.x=1"], ["--config.seed.x", "none below it"]),
    "a key below a key": (["--config.model.width.x=1"], ["--config.model.width.x", "none below it"]),
    "a word for a number left out": (["--config.optimizer.clip_norm=x"], ["config.optimizer.clip_norm", "'x'"]),
    "a word for a count left out": (
        ["--config.training.validation_rows=x"],
        ["config.training.validation_rows", "'x'"],
    ),
    "a section of which the file says nothing": (
        ["--config.mesh.fsdp=2"],
        ["--config.mesh.fsdp", "config.mesh = {}"],
    ),
    "a word for yes or no": (["--config.score.bias=maybe"], ["config.score.bias", "'maybe'", "True or False"]),
    "a word for a number": (["--config.training.num_steps=many"], ["config.training.num_steps", "many"]),
    "a fraction for a count": (["--config.training.num_steps=2.5"], ["config.training.num_steps", "2.5"]),
    "no steps": (["--config.training.num_steps=0"], ["config.training.num_steps", "0", "numbers from 1"]),
    "no rows": (["--config.scoring.batch_size=-1"], ["config.scoring.batch_size", "-1", "numbers from 1"]),
    "passes that do not divide": (["--config.training.accumulate=3"], ["config.training.accumulate", "3", "16"]),
    "an unknown score": (["--config.score.name=reconstructon"], ["config.score.name", "'reconstruction'"]),
    "an unknown loss": (["--config.loss.name=wieghted"], ["config.loss.name", "'weighted'"]),
    "an argument of another choice": (["--config.model.name=UNet"], ["config.model.depth", "UNet", "channels"]),
    "an unknown data set": (["--config.data.name=digts"], ["config.data.name", "'digits'"]),
    "a transform without a name": (["--config.transform={'low': 0.0}"], ["config.transform", "has no `name`", "range"]),
    "a transform given its rows": (
        ["--config.transform={'name': 'whiten', 'train': 1}"],
        ["config.transform.train", "whiten takes no such argument"],
    ),
    "an unknown transform": (["--config.transform.name=rnge"], ["transform", "'rnge'", "'range'"]),
    "an unknown weighting": (["--config.loss.weighting=edmm"], ["weighting", "'edmm'", "edm"]),
    "a focus that falls": (["--config.loss.focus=(0.5,0.4)"], ["config.loss.focus", "(0.5, 0.4)", "ascending"]),
    "a focus that is no time": (["--config.loss.focus=(0.5,4)"], ["config.loss.focus", "(0.5, 4", "from 0 up to 1"]),
    "an unknown prediction": (["--config.denoiser.predicts=epss"], ["predicts", "'epss'", "eps"]),
    "an unknown variance": (["--config.sampler.variance=smal"], ["variance", "'smal'", "small"]),
    "a variance that is not learned": (["--config.sampler.variance=learned"], ["learned_variance"]),
    "an unknown distance": (["--config.score.distance=l3"], ["distance", "'l3'", "l2"]),
    "a distance for pictures": (["--config.score.distance=ssim"], ["'ssim' needs pictures"]),
    "a misspelt flag": (["--wrkdir=runs"], ["--wrkdir", "'workdir'"]),
    "no flag at all": (["runs"], ["runs", "--name=value"]),
}


@pytest.mark.parametrize("problem", BAD_TRAINING)
def test_train_refuses(problem: str, tiny: str, tmp_path: Path) -> None:
    arguments, words = BAD_TRAINING[problem]
    assert_refused(train(tmp_path / "run", tiny, *arguments), *words)
    assert not (tmp_path / "run").exists()


def test_a_command_whose_output_is_closed_is_told_of_its_mistake_all_the_same() -> None:
    wrong = [sys.executable, "-m", "experiments.evaluate", "--workdir=nowhere"]
    ended = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *wrong], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: --workdir: nowhere"), ended


def test_help_and_a_mistyped_flag_name_all_flags_of_a_command(tmp_path: Path) -> None:
    found = command("experiments.train", "--help", output=tmp_path)
    names = "config", "workdir", "coordinator", "num_processes", "process_id"
    assert all(f"  --{name}: " in found.out for name in names), found
    assert_refused(train(tmp_path / "run", "--coordinato=a"), "'coordinator'", ", ".join(sorted(names)))


def test_train_refuses_configs_that_it_cannot_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert_refused(train(run, "--config", DIGITS.replace("digits", "digit")), "configs/digit.py", repr(DIGITS))
    large = DIGITS.replace("digits", "imagenet224_dit")
    assert_refused(train(run, f"--config={large}:XL"), f"{large}:XL", "found 'XL', allowed are S/16")
    assert_refused(train(run, f"--config={DIGITS}:x"), "anomalous_class: found 'x'; allowed are 0, 1")
    assert_refused(
        train(run, "--config", DIGITS, "--config.data.anomalous_class=12"),
        "anomalous_class: found '12'; did you mean '2'?",
    )
    assert_refused(train(run), "--config")
    assert_refused(command("experiments.train", "--config", DIGITS, output=tmp_path), "--workdir")
    (tmp_path / "empty").mkdir()
    empty = f"--config.data.path={tmp_path / 'empty'}"
    assert_refused(train(run, "--config", ADBENCH, empty), str(tmp_path / "empty"), "holds no .npz")
    # Names that begin as numbers do.
    assert_refused(train(run, "--config", ADBENCH, empty, "--config.data.rows=6_a,4_b"), "no set '6_a'")
    assert not run.exists()


def test_train_refuses_sets_that_would_share_a_folder(tmp_path: Path) -> None:
    for folder in ("resnet", "vit"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "same.npz", X=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) > 30)
    assert_refused(train(tmp_path / "run", "--config", ADBENCH, f"--config.data.path={tmp_path}"), "same")


def test_train_refuses_a_file_as_work_directory(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(train(tmp_path / "file", tiny), str(tmp_path / "file"))


def test_evaluate_refuses(done: tuple[Path, Finished, Finished], tmp_path: Path) -> None:
    workdir, before = done[0], contents(done[0])
    np.savez(tmp_path / "wide.npz", X=np.zeros((4, 9)), y=[0, 0, 1, 1])
    assert_refused(evaluate(tmp_path / "nowhere"), "nowhere", "no run")
    assert_refused(evaluate(workdir, "--baselines=ifrest"), "--baselines", "'iforest'")
    assert_refused(evaluate(workdir, f"--data={tmp_path / 'gone.npz'}"), "gone.npz")
    assert_refused(evaluate(workdir, f"--data={tmp_path / 'wide.npz'}"), "wide.npz", "(9,)", "(8, 8, 1)")
    assert_refused(evaluate(workdir, "--dta=x.npz"), "--dta", "'data'")
    assert contents(workdir) == before


def test_evaluate_refuses_a_run_that_is_not_finished(done: tuple[Path, Finished, Finished], tmp_path: Path) -> None:
    shutil.copy(done[0] / "config.json", tmp_path)
    assert_refused(evaluate(tmp_path), "statistics.npz", "experiments.train")


def test_a_run_that_diverges_ends_with_code_1_and_the_reason(tiny: str, tmp_path: Path) -> None:
    ended = train(tmp_path / "run", tiny, "--config.optimizer.learning_rate=1e30")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: step ") and "last good checkpoint: none" in last


# --- kills -----------------------------------------------------------------------------------------------------------


class Unbroken(NamedTuple):
    """The arguments of a run that nothing stopped, what it ended with, and how a wrong command before it had ended."""

    arguments: list[str]
    trained: detector.Trained
    refused: Finished


@pytest.fixture(scope="module")
def unbroken(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    workdir, arguments = tmp_path_factory.mktemp("unbroken") / "run", [tiny, "--config.training.num_steps=60"]
    refused = train(workdir, *arguments, "--config.loss.weighting=edmm")
    finished = train(workdir, *arguments)
    assert finished.code == 0, finished.err
    return Unbroken(arguments, detector.load(workdir), refused)


def test_what_was_refused_left_room_for_what_was_right(unbroken: Unbroken) -> None:
    assert_refused(unbroken.refused, "weighting", "edm")


def assert_ended_alike(workdir: Path, unbroken: Unbroken) -> None:
    """To the last bit."""
    trained = detector.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, trained.params, unbroken.trained.params)
    assert trained.statistics.threshold == unbroken.trained.statistics.threshold


def kill_and_resume(workdir: Path, moment: Callable[[], bool], unbroken: Unbroken) -> bool:
    """Kills the run as soon as `moment` is true, starts it again and compares what it ends with, to the last bit.

    Returns whether the run was still going when it was killed.
    """
    exit_code = send_and_resume(signal.SIGKILL, workdir, moment, unbroken)
    return exit_code == -signal.SIGKILL


def send_and_resume(
    number: signal.Signals, workdir: Path, moment: Callable[[], bool], unbroken: Unbroken
) -> int | None:
    """The same with any signal; returns the exit code of the run that got it."""
    process = start("experiments.train", "--workdir", str(workdir), *unbroken.arguments, output=workdir.parent)
    while not moment() and process.is_alive():
        time.sleep(0.001)
    if process.is_alive():
        os.kill(process.pid or 0, number)
    process.join()
    (workdir.parent / "err").rename(workdir.parent / "err of the first")
    resumed = train(workdir, *unbroken.arguments)
    assert resumed.code == 0, resumed.err
    assert_ended_alike(workdir, unbroken)
    return process.exitcode


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, unbroken: Unbroken) -> None:
    workdir = tmp_path / "run"
    assert kill_and_resume(workdir, (workdir / "checkpoints" / "20").exists, unbroken)
    steps = [json.loads(line)["step"] for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(5, 61, 5)), "it began anew, or tells steps twice"


def test_a_run_that_is_killed_while_it_saves_ends_as_one_that_was_not(tmp_path: Path, unbroken: Unbroken) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"

    def half_written() -> bool:
        """Once there is one to go back to."""
        return (checkpoints / "20").exists() and any("tmp" in path.name for path in checkpoints.glob("*"))

    assert kill_and_resume(tmp_path / "run", half_written, unbroken)


def test_a_directory_in_which_one_process_trains_is_refused_to_others(tiny: str, tmp_path: Path) -> None:
    workdir, arguments = tmp_path / "run", [tiny, "--config.training.num_steps=100000"]
    first = start("experiments.train", "--workdir", str(workdir), *arguments, output=tmp_path)
    while not (workdir / "checkpoints" / "20").exists() and first.is_alive():
        time.sleep(0.01)
    second = command("experiments.train", "--workdir", str(workdir), *arguments, output=tmp_path / "second")
    assert_refused(second, str(workdir), "another process works here")
    assert first.is_alive()
    first.terminate()
    first.join()
    assert first.exitcode == 143, "the lock ends with its process"
    again = start("experiments.train", "--workdir", str(workdir), *arguments, output=tmp_path / "again")
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    while not any(int(p.name) > step for p in (workdir / "checkpoints").glob("*[0-9]")) and again.is_alive():
        time.sleep(0.01)
    assert again.is_alive()
    again.kill()
    again.join()


def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_training(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    assert_refused(train(tmp_path / "run", tiny), "run/checkpoints", "cannot be a folder")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_and_says_so(
    tmp_path: Path, unbroken: Unbroken, number: signal.Signals, code: int
) -> None:
    workdir = tmp_path / "run"
    log = workdir / "log.jsonl"
    assert send_and_resume(number, workdir, lambda: log.exists() and log.stat().st_size > 0, unbroken) == code
    last = (tmp_path / "err of the first").read_text().strip().splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} at step ") and "repeat the command" in last
    assert len(log.read_text().splitlines()) == len(range(5, 61, 5)), "it began anew"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little more than one checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_or_read_only_disk_is_told_in_one_line_and_costs_nothing(small_disk: Path, unbroken: Unbroken) -> None:
    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", small_disk], check=True)

    def run() -> Finished:
        return command(
            "experiments.train", "--workdir", str(workdir), *unbroken.arguments, output=small_disk.parent / "output"
        )

    workdir = small_disk / "run"
    full = run()
    assert full.code == 1 and "Traceback" not in full.err, full
    assert "No space left on device" in full.err.strip().splitlines()[-1]
    assert (workdir / "checkpoints" / "10").exists()
    remount("ro")
    read_only = run()
    assert read_only.code == 2 and "Traceback" not in read_only.err, read_only
    assert "Read-only file system" in read_only.err.strip().splitlines()[-1]
    remount("rw,size=10m")
    assert run().code == 0
    assert_ended_alike(workdir, unbroken)


def test_a_run_that_has_begun_goes_on_with_the_same_data_alone(tmp_path: Path) -> None:
    config, rows = get_config("vectors"), np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    labels = np.repeat([0, 1], [39, 1])
    runs.train(config, Dataset("set", rows, rows, labels), tmp_path / "run", progress=False)
    (tmp_path / "run" / "statistics.npz").unlink()
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match=r"data\.json: holds another run's data, differing in data\.rows"):
        runs.train(config, Dataset("set", rows[:30], rows, labels), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match=r"differing in data\.name \('set' there, 'other' asked\)"):
        runs.train(config, Dataset("other", rows, rows, labels), tmp_path / "run", progress=False)
    assert contents(tmp_path / "run") == before
    runs.train(config, Dataset("set", rows, rows, labels), tmp_path / "run", progress=False)


def test_statistics_without_their_checkpoint_end_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is finished where there is the state that its statistics are of."""
    config, rows = get_config("vectors"), np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    labels = np.repeat([0, 1], [39, 1])

    def begin(name: str) -> Path:
        runs.train(config, Dataset(name, rows, rows, labels), tmp_path / "run", progress=False)
        return tmp_path / "run"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    run = begin("set")
    scores = detector.load(run).score(rows)
    shutil.rmtree(run / "checkpoints" / "20")
    begin("set")
    assert_array_equal(detector.load(run).score(rows), scores)
    # Where all checkpoints are gone it begins anew, and old statistics go before anything is learnt.
    shutil.rmtree(run / "checkpoints")
    monkeypatch.setattr(runs, "_judge", stopped)
    with pytest.raises(KeyboardInterrupt):
        begin("set")
    assert (run / "checkpoints" / "20").exists() and not (run / "statistics.npz").exists()
    monkeypatch.undo()
    assert_array_equal(detector.load(begin("set")).score(rows), scores)


def test_checkpoints_without_their_config_are_refused(tmp_path: Path, unbroken: Unbroken) -> None:
    run = tmp_path / "run"
    assert train(run, *unbroken.arguments, "--config.training.num_steps=10").code == 0
    for name in ("config.json", "statistics.npz"):
        (run / name).unlink()
    before = contents(run)
    assert_refused(train(run, *unbroken.arguments), str(run), "no config.json", "another workdir")
    assert contents(run) == before


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tmp_path: Path, unbroken: Unbroken) -> None:
    started = time.perf_counter()
    assert train(tmp_path / "run", *unbroken.arguments).code == 0
    seconds, moments, killed = time.perf_counter() - started, random.Random(0), 0
    for number in range(10):
        at = time.perf_counter() + moments.uniform(0, seconds)
        killed += kill_and_resume(tmp_path / str(number) / "run", lambda at=at: time.perf_counter() > at, unbroken)
    assert killed >= 5
