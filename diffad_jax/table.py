"""The table of methods by data sets: what is computed and written from a file of results."""

import csv
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, wilcoxon  # type: ignore[import-untyped]

from diffad_jax.files import save_json, write_atomically
from diffad_jax.metrics import METRICS
from diffad_jax.results_file import Row

LEVEL = 0.05
DIGITS = 12  # of AUROCs: what differs later is the rounding of a mean over seeds


# --- what is printed ----------------------------------------------------------------------------------------------------


def printed() -> dict[str, dict[str, float]]:
    """Table 1 of Bhosale, Mukherjee, Banerjee & Cuzzolin, "Anomaly detection using diffusion-based methods": AUROC in %.

    {dataset: {column: AUROC}}; its DTE is the categorical one. Its protocol, "paper", leaks.
    """
    with importlib.resources.files("diffad_jax.data").joinpath("paper_table1.csv").open(encoding="utf-8") as file:
        return {line.pop("dataset"): {k: float(v) for k, v in line.items()} for line in csv.DictReader(file)}


def printed_row(dataset: str) -> str | None:
    """The printed row of a set of ADBench's ResNet18 embeddings, "CIFAR10_4" or "CV_by_ResNet18/CIFAR10_4"; else None."""
    folder, _, name = dataset.rpartition("/")
    return name if folder in ("", "CV_by_ResNet18") and name in printed() else None


# --- aggregation --------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Means and standard deviations over seeds, [datasets, methods], of one metric as fractions; NaN where there is none."""

    datasets: list[str]
    methods: list[str]
    mean: np.ndarray
    deviation: np.ndarray

    def complete(self) -> "Table":
        """The data sets that every method scored: the only ones over which methods compare."""
        keep = np.isfinite(self.mean).all(axis=1)
        datasets = [name for name, kept in zip(self.datasets, keep) if kept]
        return Table(datasets, self.methods, self.mean[keep], self.deviation[keep])


def tabulate(rows: Iterable[Row], methods: Sequence[str], metric: str = "auroc") -> Table:
    """The table of one metric over the seeds.

    methods: in the given order, without those that have no row; rows of other methods are left out. Of a data set those seeds
    count that every method which has any has: split and difficulty change with the seed.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    for entry in rows:
        if entry[metric] is not None and entry["method"] in methods:
            values.setdefault((entry["dataset"], entry["method"]), {})[entry["seed"]] = entry[metric]
    datasets = sorted({dataset for dataset, _ in values})
    columns = [method for method in methods if any(found == method for _, found in values)]
    cells = []
    for dataset in datasets:
        by_method = [values.get((dataset, method), {}) for method in columns]
        shared = set.intersection(*(set(found) for found in by_method if found))
        cells.append(
            [[found[seed] for seed in sorted(shared)] if found and shared else [np.nan] for found in by_method]
        )
    shape = len(datasets), len(columns)
    mean = np.array([[np.mean(cell) for cell in line] for line in cells]).reshape(shape)
    return Table(datasets, columns, mean, np.array([[np.std(cell) for cell in line] for line in cells]).reshape(shape))


def seeds_of(rows: Iterable[Row]) -> str:
    """Over which seeds the table's means are, and which of a single method it leaves out, see `tabulate`."""
    found: dict[str, set[int]] = {}
    for entry in rows:
        if entry["auroc"] is not None:
            found.setdefault(entry["method"], set()).add(entry["seed"])
    shared = set.intersection(*found.values()) if found else set()

    def listed(seeds: set[int]) -> str:
        return ", ".join(map(str, sorted(seeds))) or "none"

    more = [f"{listed(seeds - shared)} of {method}" for method, seeds in found.items() if seeds - shared]
    return listed(shared) + (f"; not every method has {' and '.join(more)}" if more else "")


def seconds_of(rows: Iterable[Row]) -> float:
    """The seconds that training and scoring took together."""
    return sum((entry["seconds_train"] or 0) + (entry["seconds_score"] or 0) for entry in rows)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The mean over rows of each column's rank, 1 = highest, ties to 12 digits sharing theirs: [R, M] -> [M]."""
    return rankdata(-values.round(DIGITS), axis=1).mean(axis=0)


def pairwise_p(values: np.ndarray) -> np.ndarray:
    """p-values of all pairs of columns, [R, M] -> symmetric [M, M], 1 on the diagonal.

    Wilcoxon's signed-rank test over rows (two-sided), with Holm's (1979) step-down correction for the number of pairs:
    p_(i) <- max_{j <= i} min(1, (m - j + 1) p_(j)).
    """
    count = values.shape[1]
    first, second = np.triu_indices(count, 1)
    differences = (values[:, first] - values[:, second]).round(DIGITS)
    p = np.array([wilcoxon(d).pvalue if d.any() else 1.0 for d in differences.T])
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    matrix = np.ones((count, count))
    matrix[first, second] = matrix[second, first] = adjusted
    return matrix


def cliques(ranks: np.ndarray, p: np.ndarray) -> list[tuple[int, int]]:
    """The bars of a critical-difference plot: maximal runs (first, last) in rank order without a significant pair."""
    order = np.argsort(ranks, kind="stable")
    alike = p[np.ix_(order, order)] >= LEVEL
    runs: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and alike[first : last + 2, first : last + 2].all():
            last += 1
        if last > first and not any(last <= end for _, end in runs):
            runs.append((first, last))
    return runs


# --- what is written ----------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], methods: Sequence[str], facts: Mapping[str, str]) -> dict[str, Any]:
    """All that results.json holds: facts, rows, and each method's means over the complete sets, rank and p-values."""
    auroc = tabulate(rows, methods).complete()
    p = pairwise_p(auroc.mean) if len(auroc.datasets) else np.ones((len(auroc.methods),) * 2)
    ranks = mean_ranks(auroc.mean) if len(auroc.datasets) else np.full(len(auroc.methods), np.nan)
    means = {metric: tabulate(rows, methods, metric).complete().mean for metric in METRICS}
    by_method: dict[str, Any] = {}
    for i, method in enumerate(auroc.methods):
        seconds = seconds_of(entry for entry in rows if entry["method"] == method)
        scores = {k: float(v[:, i].mean()) if len(v) else None for k, v in means.items()}
        rank = float(ranks[i]) if len(auroc.datasets) else None
        by_method[method] = {**scores, "mean_rank": rank, "seconds": round(seconds, 3)}
    pairs = {a: {b: float(p[i, j]) for j, b in enumerate(auroc.methods)} for i, a in enumerate(auroc.methods)}
    return {
        "facts": dict(facts),
        "complete_datasets": auroc.datasets,
        "methods": by_method,
        "p_holm": pairs,
        "results": list(rows),
    }


def markdown(rows: Sequence[Row], methods: Sequence[str], facts: Mapping[str, str]) -> str:
    """The table as Markdown: AUROC in % per set and method, the printed figures beside ours, failures with their cause."""
    table = tabulate(rows, methods)
    complete = table.complete()
    text = "".join(f"- {key}: {value}\n" for key, value in facts.items()) + "\n"
    lines = [[name, *cells(table.mean[i], table.deviation[i])] for i, name in enumerate(table.datasets)]
    if complete.datasets:
        lines.append([f"mean of {len(complete.datasets)}", *cells(complete.mean.mean(axis=0))])
        lines.append(["mean rank", *(f"{rank:.2f}" for rank in mean_ranks(complete.mean))])
    text += grid(["AUROC (%)", *table.methods], lines)
    if beside := beside_printed(table):
        text += "\nThe sets of the paper's Table 1 beside its printed columns, whose protocol leaks:\n\n"
        text += grid(*beside)
    return text + failures_text(rows)


def failures(rows: Sequence[Row]) -> list[str]:
    """What failed, and why, a line each."""
    return [f"{r['dataset']}, {r['method']}, seed {r['seed']}: {r['error']}" for r in rows if r["error"]]


def failures_text(rows: Sequence[Row]) -> str:
    """The failures as a Markdown list with a head, or nothing."""
    found = "".join(f"- {failure}\n" for failure in failures(rows))
    return f"\nFailures:\n\n{found}" if found else ""


def beside_printed(table: Table) -> tuple[list[str], list[list[str]]] | None:
    """Head and lines of the sets that Table 1 prints: the measured methods, then the printed columns; the mean last."""
    names = [(i, printed_name) for i, name in enumerate(table.datasets) if (printed_name := printed_row(name))]
    if not names:
        return None
    theirs = printed()
    columns = list(next(iter(theirs.values())))
    figures = [[*table.mean[i], *(theirs[name][column] / 100 for column in columns)] for i, name in names]
    values = np.vstack([figures, np.mean(figures, axis=0)])
    lines = [[name, *cells(line)] for name, line in zip([name for _, name in names] + ["mean"], values)]
    return ["AUROC (%)", *table.methods, *(f"printed {column}" for column in columns)], lines


def cells(mean: np.ndarray, deviation: np.ndarray | None = None) -> list[str]:
    """Fractions as percent, with ± the standard deviation where there is one, and – where there is nothing."""
    spread = np.zeros(len(mean)) if deviation is None else deviation
    return [
        "–" if np.isnan(m) else f"{100 * m:.2f}" + (f" ± {100 * d:.2f}" if d > 0 else "") for m, d in zip(mean, spread)
    ]


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def write(directory: Path, results: dict[str, Any], text: str) -> None:
    """Writes results.json and table.md."""
    save_json(directory / "results.json", results)
    write_atomically(directory / "table.md", text.encode())
