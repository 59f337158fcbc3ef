"""The table as one HTML page that opens without a network: heat table, ranks, critical differences, ROC curves."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve  # type: ignore[import-untyped]

from diffad_jax.data.dataset import evenly_spaced
from diffad_jax.figures import CHANCE, INK, MUTED, png, stroke, with_legend
from diffad_jax.files import save_npz, write_atomically
from diffad_jax.metrics import LOWER_IS_BETTER, METRICS
from diffad_jax.pages import facts_html, figure_html, page, table_html
from diffad_jax.results_file import Row
from diffad_jax.table import Table, beside_printed, cells, cliques, failures, tabulate

CURVE_POINTS = 200
COLUMNS = 5
HEAT = """
.heat { margin: -.4rem -.75rem; padding: .4rem .75rem; display: block; }
"""


def curve_path(directory: Path, key: Sequence[object]) -> Path:
    """Where the ROC curve of (dataset, method, protocol, seed) is kept: DIRECTORY/curves/*.npz."""
    return directory / "curves" / ("--".join(map(str, key)).replace("/", "__") + ".npz")


def save_curve(path: Path, labels: np.ndarray, scores: np.ndarray) -> None:
    """Keeps the ROC curve of scores [M] against labels [M], at most 200 points of it."""
    false_rate, true_rate, _ = roc_curve(labels, scores)
    kept = evenly_spaced(len(false_rate), CURVE_POINTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(path, {"fpr": false_rate[kept].astype(np.float32), "tpr": true_rate[kept].astype(np.float32)})


def write_page(directory: Path, rows: Sequence[Row], methods: Sequence[str], results: Mapping[str, Any]) -> Path:
    """Writes DIRECTORY/table.html and returns its path.

    rows: those of results.csv of one protocol; results: their `table.summary`. ROC curves are read from DIRECTORY/curves.
    """
    table = tabulate(rows, methods)
    complete = table.complete()
    body = facts_html(results["facts"]) + _section("AUROC", _heat(table, complete))
    if beside := beside_printed(table):
        lines = [(escape(name), values, [False] * len(values)) for name, *values in beside[1]]
        text = "<p>Measured, and as the paper's Table 1 prints it, whose protocol leaks.</p>"
        body += _section("Beside the printed table", text + table_html("settings", beside[0], lines))
    if len(complete.datasets) > 1 and len(complete.methods) > 1:
        ranks = np.array([found["mean_rank"] for found in results["methods"].values()])
        p = np.array([list(line.values()) for line in results["p_holm"].values()])
        plot = png(critical_difference(complete.methods, ranks, p))
        text = f"""<p>Mean rank over {len(complete.datasets)} sets, 1 the best. A bar joins methods of which no two differ
significantly: Wilcoxon's signed-rank test over sets with Holm's correction, level 5 %.</p>"""
        body += _section("Ranks and critical differences", text + figure_html("critical differences", plot))
        body += _section("All measures", _measures(results["methods"]))
    if (curves := roc_curves(directory, table, rows)) is not None:
        body += _section("ROC curves, seed 0", figure_html("ROC curves", png(curves)))
    if items := "".join(f"<li>{escape(failure)}</li>" for failure in failures(rows)):
        body += _section("Failures", f"<ul>{items}</ul>")
    path = directory / "table.html"
    write_atomically(path, page("Anomaly detection, methods by data sets", body, HEAT).encode())
    return path


def critical_difference(methods: Sequence[str], ranks: np.ndarray, p: np.ndarray) -> Figure:
    """Methods on the axis of mean ranks, bars over those that do not differ significantly (Demsar 2006, section 3.2.4)."""
    order, bars = np.argsort(ranks, kind="stable"), cliques(ranks, p)
    half, count = (len(order) + 1) // 2, len(order)
    figure = Figure(figsize=(8, 1.2 + 0.28 * half + 0.14 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0.2, count + 0.8), ylim=(-half - 0.5 * len(bars) - 0.6, 0.3), yticks=[])
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, count + 1))
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    axes.tick_params(color=MUTED, labelcolor=MUTED)
    for place, (first, last) in enumerate(bars):
        span = [ranks[order[first]] - 0.05, ranks[order[last]] + 0.05]
        axes.plot(span, [-0.5 * (place + 1)] * 2, color=INK, linewidth=3.5, solid_capstyle="butt")
    for place, i in enumerate(order):
        left = place < half
        level = -0.5 * len(bars) - 1 - (place if left else count - 1 - place)
        edge = 0.5 if left else count + 0.5
        axes.plot([ranks[i], ranks[i], edge], [0, level, level], color=MUTED, linewidth=1)
        label = f"{methods[i]}  {ranks[i]:.2f}"
        axes.text(edge, level, label, ha="left" if left else "right", va="bottom", color=INK, fontsize=9)
    return figure


def roc_curves(directory: Path, table: Table, rows: Sequence[Row]) -> Figure | None:
    """One small plot a data set with a curve a method, from the kept curves of seed 0; None where there are none."""
    protocol = rows[0]["protocol"] if rows else ""
    paths = {(d, m): curve_path(directory, (d, m, protocol, 0)) for d in table.datasets for m in table.methods}
    datasets = [d for d in table.datasets if any(paths[d, m].exists() for m in table.methods)]
    if not datasets:
        return None
    down = -(-len(datasets) // COLUMNS)
    figure = Figure(figsize=(2.3 * COLUMNS, 2.3 * down + 0.8), layout="constrained")
    grid = figure.subplots(down, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    handles = {}
    for axes, dataset in zip(grid, datasets):
        axes.set_title(dataset, fontsize=8, color=INK, parse_math=False)
        axes.plot([0, 1], [0, 1], **CHANCE)
        for i, method in enumerate(reversed(table.methods)):
            if paths[dataset, method].exists():
                with np.load(paths[dataset, method], allow_pickle=False) as curve:
                    style = stroke(i) | {"linewidth": 1.8 if i == 0 else 0.9}
                    handles[method] = axes.plot(curve["fpr"], curve["tpr"], label=method, **style)[0]
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color=MUTED, labelcolor=MUTED, labelsize=7)
    for axes in grid[len(datasets) :]:
        axes.set_axis_off()
    # The legend collects handles from all axes; one of each method is enough.
    for axes in grid[: len(datasets)]:
        for line in axes.get_lines():
            if line not in handles.values():
                line.set_label("_")
    return with_legend(figure, "True against false positive rate")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _heat(table: Table, complete: Table) -> str:
    """AUROC per set and method, the shade from 50 % (none) to 100 %, the best of each row bold."""
    values, spread, names = table.mean, table.deviation, [escape(name) for name in table.datasets]
    if complete.datasets:
        values, names = np.vstack([values, complete.mean.mean(axis=0)]), [*names, f"mean of {len(complete.datasets)}"]
        spread = np.vstack([spread, np.zeros(len(table.methods))])
    lines = []
    for name, line, deviation in zip(names, values, spread):
        shades = np.nan_to_num(np.clip(2 * line - 1, 0, 1) ** 1.5 * 0.75)
        shown = [
            f'<span class="heat" style="background: rgb(0 114 178 / {shade:.2f})">{cell}</span>'
            for shade, cell in zip(shades, cells(line, deviation))
        ]
        lines.append((name, shown, list(line == np.nan_to_num(line, nan=-1.0).max())))
    return table_html("settings", ["AUROC (%)", *table.methods], lines)


def _measures(by_method: Mapping[str, Any]) -> str:
    """Means of all four measures over the complete sets, best rank first, with the seconds that the method took."""
    ordered = sorted(by_method.items(), key=lambda item: item[1]["mean_rank"])
    values = np.array([[found[metric] for metric in METRICS] for _, found in ordered])
    signs = np.array([-1 if metric in LOWER_IS_BETTER else 1 for metric in METRICS])
    best = signs * values == (signs * values).max(axis=0)
    lines = [
        (escape(name), [*cells(line), f"{found['mean_rank']:.2f}", f"{found['seconds']:.1f}"], [*bold, False, False])
        for (name, found), line, bold in zip(ordered, values, best)
    ]
    return table_html("methods", ["Method", *METRICS.values(), "mean rank", "seconds"], lines)
