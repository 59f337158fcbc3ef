"""The table: what a kill, a failure and a second run leave, and what its statistics say."""

import csv
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import Finished, command, start
from scipy.stats import wilcoxon  # type: ignore[import-untyped]
from test_report import Page

from diffad_jax import csv_files, results_file, table, table_report
from diffad_jax.errors import InputError
from diffad_jax.methods import METHODS
from diffad_jax.metrics import METRICS
from experiments import cli

METHODS_AND_SEEDS = ("--methods=iforest,knn,ours", "--seeds=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets as they come: a good one, 20 rows with a constant column, copies, one class, NaN and infinity."""
    root, generator = tmp_path_factory.mktemp("adbench"), np.random.default_rng(0)

    def save(name: str, x: np.ndarray, y: np.ndarray) -> None:
        np.savez(root / f"{name}.npz", X=x, y=y)

    x, y = generator.normal(size=(90, 5)), np.repeat([0, 1], [70, 20])
    x[70:] += 2
    save("MVTec-AD_tile", x, y)
    save("copies", np.ones_like(x), y)
    few = np.concatenate([x[:16], x[-4:]])
    few[:, 2] = 3
    save("few", few, np.repeat([0, 1], [16, 4]))
    save("one_class", x, np.zeros(90, int))
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        spoilt = x.copy()
        spoilt[7, 1] = value
        save(name, spoilt, y)
    return root


def arguments(folder: Path, out: Path, *flags: str) -> tuple[str, ...]:
    return ("experiments.table1", f"--data_dir={folder}", f"--out={out}", *METHODS_AND_SEEDS, *flags)


def run(folder: Path, out: Path, *flags: str) -> Finished:
    return command(*arguments(folder, out, *flags), output=out.parent / "said")


def lines(path: Path) -> list[dict[str, str]]:
    """The rows of a results.csv but for the seconds."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]


def test_awkward_sets_are_scored_or_said_and_a_killed_run_ends_alike(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(folder, out)
    assert done.code == 0, done.err
    whole = lines(out / "results.csv")
    assert len(whole) == 6 * 2 * 3
    failed = {row["dataset"]: row["error"] for row in whole if row["error"]}
    assert set(failed) == {"one_class", "nan", "inf"}
    assert "not finite" in failed["nan"] and "not finite" in failed["inf"] and "labels 0" in failed["one_class"]
    assert {row["auroc"] for row in whole if row["dataset"] == "copies"} == {"0.5"}
    good = {(row["method"], row["seed"]): row["auroc"] for row in whole if row["dataset"] == "MVTec-AD_tile"}
    assert float(good["ours", "0"]) > 0.9 and good["ours", "0"] != good["ours", "1"]
    assert "one_class, ours, seed 1" in (out / "table.md").read_text()
    page = Page((out / "table.html").read_text())
    assert "MVTec-AD_tile" in page.text and len(page.images()) == 2

    killed = tmp_path / "killed"
    process = start(*arguments(folder, killed), output=tmp_path / "said")
    while not (killed / "results.csv").exists() or len(lines(killed / "results.csv")) < 10:
        assert process.is_alive(), (tmp_path / "said" / "err").read_text()
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    text = (killed / "results.csv").read_text()
    assert process.exitcode == -signal.SIGKILL and text.count("\n") - 1 < len(whole)
    # As a kill in the middle of a write leaves it.
    (killed / "results.csv").write_text(text[:-25])
    again = run(folder, killed)
    assert again.code == 0 and lines(killed / "results.csv") == whole
    assert json.loads((killed / "results.json").read_text())["methods"]["ours"]["auroc"] > 0.5
    kept = (killed / "results.csv").read_text().splitlines()
    assert set(text.splitlines()[:8]) <= set(kept), "what was done is not done again"


def test_a_table_without_a_result_says_so_and_a_method_named_twice_is_measured_once(
    folder: Path, tmp_path: Path
) -> None:
    done = run(folder, tmp_path / "out", "--methods=knn,knn", "--rows=nan", "--seeds=1")
    assert done.code == 2 and "no method succeeded; the first failed with" in done.err
    assert [row["method"] for row in lines(tmp_path / "out" / "results.csv")] == ["knn"]
    other = shutil.copytree(folder, tmp_path / "other")
    refused = run(other, tmp_path / "out", "--rows=few", "--methods=knn")
    assert refused.code == 2 and "run.json: holds another run's results, differing in results.data_dir" in refused.err


def test_results_of_a_method_that_is_gone_stay_in_the_file_and_out_of_the_table(folder: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ("--methods=knn", "--rows=few", "--seeds=1")
    assert run(folder, out, *flags).code == 0
    for dataset in ("few", "nan"):
        row = results_file.row(results_file.Key(dataset, "gone", "clean", 0), VALUES)
        csv_files.append(out / "results.csv", [[row[field] for field in results_file.FIELDS]])
    assert run(folder, out, *flags).code == 0
    assert [row["method"] for row in lines(out / "results.csv")] == ["knn", "gone", "gone"]
    assert "gone" not in (out / "table.md").read_text() and "| nan |" not in (out / "table.md").read_text()


def test_flags_that_name_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    for flags, said in [
        (["--methods="], "--methods: found ''; allowed are"),
        (["--methods=ourz"], "--methods: found 'ourz'; did you mean 'ours'?"),
        (["--rows=fews"], "--rows: found 'fews'; did you mean 'few'?"),
    ]:
        done = run(folder, tmp_path / "out", *flags)
        assert done.code == 2 and said in done.err and not (tmp_path / "out").exists()


KEYS = [results_file.Key(*key, "clean", 0) for key in (("set", "ours"), ("set", "knn"), ("set, too", "ours"))]
VALUES = {"auroc": 0.7512345678, "aupr": 0.5, "f1": 0.4, "fpr95": 1.0, "n_train": 9, "n_test": 12}
SECONDS = {"seconds_train": 1.23456, "seconds_score": 0.0}


@pytest.mark.parametrize("cut", [1, 10, 60, 119])
def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.csv"
    results = results_file.Results(path)
    for key in KEYS:
        results.append(results_file.row(key, VALUES | SECONDS))
    text = path.read_text()
    path.write_text(text[:-cut])
    reopened = results_file.Results(path)
    whole = text[:-cut].count("\n") - 1
    assert reopened.rows == results.rows[:whole] and len(reopened.done) == whole
    for key in KEYS[whole:]:
        reopened.append(results_file.row(key, VALUES | SECONDS))
    assert path.read_text() == text


def test_failures_are_kept_on_one_line_and_tried_again(tmp_path: Path) -> None:
    results = results_file.Results(tmp_path / "results.csv")
    results.append(results_file.row(KEYS[0], {"error": 'ValueError: "a", b\nand c'}))
    assert lines(results.path)[0]["error"] == 'ValueError: "a", b and c'
    assert results_file.Results(results.path).done == set()
    results.append(results_file.row(KEYS[1], VALUES))
    whole = results.path.read_text()
    (tmp_path / "damaged.csv").write_text(whole.replace(f"{KEYS[1].protocol},{KEYS[1].seed},", f"{KEYS[1].protocol},,"))
    with pytest.raises(InputError, match="damaged.csv: a row is damaged .*; remove it, or choose another"):
        results_file.Results(tmp_path / "damaged.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other.csv: has the columns a,b, expected dataset,"):
        results_file.Results(tmp_path / "other.csv")


def test_means_are_over_seeds_and_over_sets_that_all_methods_scored() -> None:
    figures = {("a", "knn"): [0.5, 0.7], ("a", "ours"): [0.8, 0.8], ("b", "ours"): [0.9]}
    rows = [
        results_file.row(results_file.Key(dataset, method, "clean", seed), VALUES | {"auroc": value})
        for (dataset, method), values in figures.items()
        for seed, value in enumerate(values)
    ]
    gone = results_file.row(results_file.Key("c", "gone", "clean", 0), VALUES)
    found = table.tabulate([*rows, gone], list(METHODS))
    assert found.methods == ["knn", "ours"] and found.datasets == ["a", "b"]
    np.testing.assert_allclose(found.mean, [[0.6, 0.8], [np.nan, 0.9]])
    np.testing.assert_allclose(found.deviation, [[0.1, 0], [np.nan, 0]])
    assert found.complete().datasets == ["a"]
    assert table.seeds_of(rows) == "0, 1"
    # Seeds differ in split and difficulty: one that a method lacks counts for none.
    fewer = table.tabulate([row for row in rows if (row["method"], row["seed"]) != ("ours", 1)], list(METHODS))
    np.testing.assert_allclose(fewer.mean, [[0.5, 0.8], [np.nan, 0.9]])
    alone = [row for row in rows if row["method"] == "knn" or row["seed"] == 0]
    assert table.seeds_of(alone) == "0; not every method has 1 of knn"
    text = table.markdown(rows, list(METHODS), {})
    assert (
        "| a | 60.00 ± 10.00 | 80.00 |" in text
        and "| b | – | 90.00 |" in text
        and "| mean of 1 | 60.00 | 80.00 |" in text
    )


def test_one_process_at_a_time_adds_to_results(tmp_path: Path) -> None:
    """Each rewrites the file at its end, by the rows that it knows."""
    with results_file.results_in(tmp_path / "out", tmp_path, {}) as results:
        second = results_file.results_in(tmp_path / "out", tmp_path, {})
        with pytest.raises(InputError, match="out: another process works here"), second:
            pass
        # Not even whose directory it is may be said by who cannot have it.
        (tmp_path / "out" / "run.json").unlink()
        other = results_file.results_in(tmp_path / "out", tmp_path / "other", {})
        with pytest.raises(InputError, match="out: another process works here"), other:
            pass
        assert not (tmp_path / "out" / "run.json").exists()
        results.append(results_file.row(results_file.Key("a", "ours", "clean", 0), {"auroc": 0.5}))
    with results_file.results_in(tmp_path / "out", tmp_path, {}) as results:
        assert len(results.rows) == 1


def test_results_of_data_that_changed_are_not_added_to(tmp_path: Path) -> None:
    results_file.claim_data(tmp_path, {"a": "1", "b": "2"})
    results_file.claim_data(tmp_path, {"b": "2", "c": "3"})
    with pytest.raises(InputError, match="holds results of other data in b, c than there are now"):
        results_file.claim_data(tmp_path, {"a": "1", "b": "0", "c": "0"})
    results_file.claim_data(tmp_path, {"a": "1", "b": "2", "c": "3"})


def test_printed_figures_stand_beside_resnet_rows_only() -> None:
    assert len(table.printed()) == 28 and table.printed()["CIFAR10_4"]["DDPM"] == 77.42
    assert table.printed_row("CV_by_ResNet18/CIFAR10_4") == table.printed_row("CIFAR10_4") == "CIFAR10_4"
    assert table.printed_row("CV_by_ViT/CIFAR10_4") is table.printed_row("CIFAR10_0") is None
    rows = [
        results_file.row(results_file.Key(name, "dte_c", "paper", 0), VALUES | {"auroc": 0.5})
        for name in ("CIFAR10_4", "CIFAR10_0")
    ]
    head, body = table.beside_printed(table.tabulate(rows, list(METHODS))) or ([], [])
    assert head[:2] == ["AUROC (%)", "dte_c"] and head[-1] == "printed DTE"
    assert [line[:2] + line[-1:] for line in body] == [["CIFAR10_4", "50.00", "55.40"], ["mean", "50.00", "55.40"]]


def test_ranks_p_values_and_cliques() -> None:
    # A seed at which Holm's products fall again, so that the running maximum matters.
    generator = np.random.default_rng(7)
    values = generator.normal(size=(25, 4)) + np.array([1.5, 1.4, 0, 0.1])
    assert table.mean_ranks(np.array([[3.0, 1, 1], [9, 5, 7]])).tolist() == [1, 2.75, 2.25]
    pairs = list(itertools.combinations(range(4), 2))
    raw = np.array([wilcoxon(values[:, a], values[:, b]).pvalue for a, b in pairs])
    found = table.pairwise_p(values)
    # Holm by its definition: the i-th smallest is multiplied by the number of hypotheses not yet rejected.
    order, running = np.argsort(raw), 0.0
    for step, i in enumerate(order):
        running = max(running, min(1.0, raw[i] * (6 - step)))
        assert found[pairs[i]] == found[pairs[i][::-1]] == pytest.approx(running)
    assert table.cliques(table.mean_ranks(values), found) == [(0, 1), (2, 3)]
    assert table.pairwise_p(np.ones((5, 2))).tolist() == [[1, 1], [1, 1]]


def test_the_plot_of_ranks_names_each_method_beside_its_own() -> None:
    methods, ranks = ["a", "b", "c", "d"], np.array([2.5, 1.0, 4.0, 2.6])
    figure = table_report.critical_difference(methods, ranks, np.eye(4))
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {"a  2.50", "b  1.00", "c  4.00", "d  2.60"}


def test_kept_curves_are_thin_and_keep_their_ends(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 5000)
    path = table_report.curve_path(tmp_path, results_file.Key("CV/a", "ours", "clean", 0))
    table_report.save_curve(path, labels, labels + generator.normal(size=5000))
    with np.load(path) as curve:
        assert len(curve["fpr"]) <= 200 and curve["fpr"][[0, -1]].tolist() == curve["tpr"][[0, -1]].tolist() == [0, 1]


def test_one_bar_joins_all_that_do_not_differ() -> None:
    assert table.cliques(np.array([1.0, 2.0, 3.0]), np.ones((3, 3))) == [(0, 2)]


def test_digests_of_sets_that_are_not_asked_for_are_kept(tmp_path: Path) -> None:
    results_file.claim_data(tmp_path, {"a": "1"})
    results_file.claim_data(tmp_path, {"b": "1"})
    with pytest.raises(InputError, match="other data in a "):
        results_file.claim_data(tmp_path, {"a": "2"})


def test_means_are_over_the_sets_that_all_methods_have() -> None:
    found = (("A", "x", 0.5), ("B", "x", 1.0), ("A", "y", 0.7))
    rows = [results_file.row(results_file.Key(d, m, "clean", 0), dict.fromkeys(METRICS, v)) for d, m, v in found]
    by_method = table.summary(rows, ["x", "y"], {})["methods"]
    assert (by_method["x"]["auroc"], by_method["y"]["auroc"]) == (0.5, 0.7)


def test_names_that_are_no_utf_8_keep_their_bytes(tmp_path: Path) -> None:
    csv_files.append(tmp_path / "a.csv", [["path"], ["\udcff.png"]])
    assert (tmp_path / "a.csv").read_bytes() == b"path\n\xff.png\n"
    assert csv_files.read(tmp_path / "a.csv", ["path"]) == [["\udcff.png"]]


def test_rows_are_named_with_their_folder_or_without(tmp_path: Path) -> None:
    (tmp_path / "CV").mkdir()
    np.savez(tmp_path / "CV" / "a.npz", X=np.zeros((2, 2)), y=np.arange(2))
    assert cli.chosen_rows(str(tmp_path), ["a"]) == cli.chosen_rows(str(tmp_path), ["CV/a"]) == ["CV/a"]


def test_the_rounding_of_a_mean_over_seeds_is_no_difference() -> None:
    seeds = np.array([0.9, 0.8, 0.7])
    values = np.tile([seeds.mean(), seeds[::-1].mean() - 2.3e-16], (6, 1))
    assert (values[:, 0] != values[:, 1]).all()
    assert table.mean_ranks(values).tolist() == [1.5, 1.5] and table.pairwise_p(values)[0, 1] == 1
