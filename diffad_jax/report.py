"""The report of an evaluation: one HTML file that opens without a network, and its figures as PNG files beside it."""

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffad_jax import figures
from diffad_jax.errors import InputError
from diffad_jax.figures import Pictures
from diffad_jax.files import slug, write_atomically
from diffad_jax.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    above_threshold,
    auroc_by_group,
    bootstrap_intervals,
    metrics,
)
from diffad_jax.pages import facts_html, figure_html, page, table_html

PIXEL_METRICS = {"pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
ByMethod = dict[str, dict[str, float]]  # the fractions of `metrics` per method
GRID_CAPTION = """From high to low score; above each picture its true class and its score.
Noised pictures are clipped to the range of the input. The heat maps share one colour scale, which goes with the square root:
what is weak shows beside what is strong."""
MEASURES = """A score says how anomalous an item is: higher means more anomalous. The diffusion method is tinted, the best
of each comparison bold. All measures are in percent, with anomalies as the positives; in grey stands the 95 % bootstrap
interval over test items. Higher is better for AUROC, AUPR and F1 (as many called anomalous as there are anomalies);
lower is better for FPR95, the share of normals called anomalous when 95 % of the anomalies are found."""
PIXEL_MEASURES = """ Pixel measures judge the heat maps of the diffusion method against the masks: AUROC over all
pixels, and AUPRO, the share of each defective region that is found, averaged over false positive rates up to 30 %."""
MASK_CAPTION = " The outline is the true mask of the defect."


class Result(NamedTuple):
    """One evaluated setting.

    `labels` [M] are 0 (normal) and 1 (anomaly); `scores` map a method to its [M] raw anomaly scores, the diffusion
    method first; `threshold`, taken from training normals, is the diffusion score above which an item is called
    anomalous; `facts` say what was evaluated: data set, normal class, protocol, seed. `groups` [M] name each item's
    defect or class; `pixel` holds the diffusion method's fractions "pixel_auroc" and "aupro", where there are masks.
    """

    name: str
    labels: np.ndarray
    scores: Mapping[str, np.ndarray]
    threshold: float | None
    pictures: Pictures | None
    facts: Mapping[str, str | float]
    groups: np.ndarray | None = None
    pixel: Mapping[str, float] | None = None


def most_and_least(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Indices [K], K <= 4 k, of the test items worth looking at, from most to least anomalous by scores [M].

    They are the k highest and the k lowest scores, and of each class the k that are ranked most wrongly: the highest
    scores of normals and the lowest of anomalies (labels [M], 0 and 1).
    Raises InputError on k < 1 and on lengths that differ.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"scores: shape {scores.shape}, labels have {labels.shape}, allowed are two arrays [M]")
    if k < 1:
        raise InputError(f"k: found {k}, allowed is 1 or more")
    order = np.argsort(-scores, kind="stable")
    normals, anomalies = order[labels[order] == 0], order[labels[order] == 1]
    chosen = np.concatenate([order[:k], order[-k:], normals[:k], anomalies[-k:]])
    return order[np.isin(order, chosen)]


def summary_table(results: Sequence[Result]) -> str:
    """AUROC and AUPR in percent as plain text: a row a method for one setting, else a row a setting and their mean.

    Below them stand pixel AUROC and AUPRO where a setting has them.
    """
    measured = _measure(results)
    if len(results) == 1:
        rows = [[method, _percent(m["auroc"]), _percent(m["aupr"])] for method, m in measured[0].items()]
        blocks = [_aligned([[results[0].name, "AUROC", "AUPR"], *rows])]
    else:
        blocks = []
        for key in ("auroc", "aupr"):
            names, methods, values = _by_setting(results, measured, key)
            rows = [[name, *map(_percent, row)] for name, row in zip(names, values, strict=True)]
            blocks.append(_aligned([[f"{METRICS[key]} (%)", *methods], *rows]))
    if lines := _pixel_lines(results):
        blocks.append(_aligned([["pixels (%)", *PIXEL_METRICS.values()], *([name, *cells] for name, cells in lines)]))
    return "\n\n".join(blocks)


def threshold_lines(results: Sequence[Result]) -> str:
    """What of each setting lies above its threshold, as plain text; nothing where none has one."""
    shares = {result.name: _above(result) for result in results}
    rows = [[name, *map(_percent, found.values())] for name, found in shares.items() if found]
    return _aligned([["above the threshold (%)", "normals", "anomalies"], *rows]) if rows else ""


def write_report(path: Path, title: str, results: Sequence[Result], config: Mapping[str, str]) -> Path:
    """Write `path` (HTML) and its figures as `<stem>-[<setting>-]<figure>.png` beside it; return `path`.

    `config` goes below, key by key. Each file appears whole or not at all, the HTML last.
    Raises InputError on results that do not fit together, before anything is written.
    """
    path = Path(path)
    measured = _measure(results)
    facts = results[0].facts
    shared = {key: value for key, value in facts.items() if all(r.facts.get(key) == value for r in results)}
    files: dict[str, bytes] = {}
    places = _places(results)
    body = facts_html(shared) + (_overview(results, measured, places) if len(results) > 1 else "")
    for result, by_method, place in zip(results, measured, places, strict=True):
        prefix = path.stem if len(results) == 1 else f"{path.stem}-{place}"
        drawn = figures.draw(result.labels, result.scores, by_method, result.threshold, result.pictures)
        images = {kind: figures.png(figure) for kind, figure in drawn.items()}
        files |= {f"{prefix}-{kind}.png": image for kind, image in images.items()}
        own = {key: value for key, value in result.facts.items() if key not in shared}
        body += _section(result, by_method, own, images, place)
    html = page(
        title,
        f"""<p>{MEASURES}{PIXEL_MEASURES if any(result.pixel for result in results) else ""}</p>
{body}{_config(config)}""",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(path.with_name(name), content)
    write_atomically(path, html.encode())
    return path


def _measure(results: Sequence[Result]) -> list[ByMethod]:
    """Per setting and method the fractions of `metrics`; every InputError names the setting and the method."""
    if not results:
        raise InputError("results: found none, allowed is at least one")
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        raise InputError(f"results: found the names {names}, allowed are settings with different ones")
    measured: list[ByMethod] = []
    for result in results:
        if not result.scores:
            raise InputError(f"{result.name!r}: found no scores, allowed is at least one method")
        if result.threshold is not None and not np.isfinite(result.threshold):
            raise InputError(f"{result.name!r}: found threshold {result.threshold}, allowed is finite or None")
        if result.groups is not None and np.shape(result.groups) != np.shape(result.labels):
            shapes = f"{np.shape(result.groups)}, labels have {np.shape(result.labels)}"
            raise InputError(f"{result.name!r}: groups have shape {shapes}, allowed are two arrays [M]")
        if result.pixel is not None and set(result.pixel) != set(PIXEL_METRICS):
            raise InputError(f"{result.name!r}: found pixel {sorted(result.pixel)}, allowed is {sorted(PIXEL_METRICS)}")
        measured.append({})
        for method, scores in result.scores.items():
            try:
                measured[-1][method] = metrics(result.labels, scores)
            except InputError as error:
                raise InputError(f"{result.name!r}, {method!r}: {error}") from error
    return measured


def _by_setting(results: Sequence[Result], measured: list[ByMethod], key: str) -> tuple[list, list, np.ndarray]:
    """One metric as a table: names (the settings and "mean"), methods, fractions [names, methods].

    A method that some setting lacks has no mean: over fewer settings it would not compare with the others.
    """
    methods = list(dict.fromkeys(method for by_method in measured for method in by_method))
    values = np.array([[by_method.get(m, {}).get(key, np.nan) for m in methods] for by_method in measured])
    return [*(result.name for result in results), "mean"], methods, np.vstack([values, values.mean(axis=0)])


def _percent(fraction: float) -> str:
    return "–" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def _places(results: Sequence[Result]) -> list[str]:
    """What the files and the section of each setting are called: its name's `slug`, with a number where others have that."""
    found: list[str] = []
    for own in (slug(result.name) for result in results):
        numbered = (own if count == 1 else f"{own}-{count}" for count in itertools.count(1))
        found.append(next(place for place in numbered if place not in found))
    return found


def _section(
    result: Result, by_method: ByMethod, facts: Mapping[str, str | float], images: dict[str, bytes], place: str
) -> str:
    rows = []
    for method, values in by_method.items():
        intervals = bootstrap_intervals(result.labels, result.scores[method], seed=0)
        cells = [_with_interval(values[key], intervals[key]) for key in METRICS]
        best = [values[k] == (min if k in LOWER_IS_BETTER else max)(m[k] for m in by_method.values()) for k in METRICS]
        rows.append((escape(method), cells, best))
    charts = "".join(figure_html(f"{k}: {result.name}", image) for k, image in images.items() if k != "pictures")
    pixels = [(next(iter(by_method)), cells) for _, cells in _pixel_lines([result])]
    grid = ""
    if result.pictures is not None:
        outlined = MASK_CAPTION if result.pictures.masks is not None else ""
        pictures = figure_html(f"pictures: {result.name}", figures.webp(images["pictures"]), "pictures", "webp")
        grid = f"{pictures}<p>{GRID_CAPTION}{outlined}</p>"
    return f"""
<section id="{place}">
<h2>{escape(result.name)}</h2>
{facts_html(facts)}{table_html("methods", ["Method", *METRICS.values()], rows)}{_at_threshold(result)}
{_pixels("methods", pixels)}{_groups(result)}<div class="row">{charts}</div>
{grid}</section>"""


def _overview(results: Sequence[Result], measured: list[ByMethod], places: Sequence[str]) -> str:
    tables = ""
    for key in ("auroc", "aupr"):
        names, methods, values = _by_setting(results, measured, key)
        links = [f'<a href="#{place}">{escape(name)}</a>' for place, name in zip(places, names)]
        best = values == np.nan_to_num(values, nan=-1.0).max(axis=1, keepdims=True)
        rows = [(n, list(map(_percent, v)), list(b)) for n, v, b in zip([*links, "mean"], values, best, strict=True)]
        tables += table_html("settings", [f"{METRICS[key]} (%)", *methods], rows)
    tables += _pixels("", _pixel_lines(results))
    return f'<section><h2>All settings</h2><div class="tables">{tables}</div></section>'


def _pixel_lines(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """(name, cells) of the settings with pixel metrics, and of their mean where all have them and are several."""
    measured = {r.name: [r.pixel[key] for key in PIXEL_METRICS] for r in results if r.pixel is not None}
    if len(measured) == len(results) > 1:
        measured["mean"] = [float(value) for value in np.mean(list(measured.values()), axis=0)]
    return [(name, [_percent(value) for value in values]) for name, values in measured.items()]


def _pixels(css: str, lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    rows = [(escape(name), cells, [False] * len(cells)) for name, cells in lines]
    return table_html(css, ["Pixels (%)", *PIXEL_METRICS.values()], rows) if rows else ""


def _groups(result: Result) -> str:
    """AUROC of every group of anomalies, a column a method; nothing where there is but one group."""
    if result.groups is None:
        return ""
    found = [auroc_by_group(result.labels, scores, result.groups, seed=0) for scores in result.scores.values()]
    if len(found[0]) < 2:
        return ""
    rows = []
    for name in found[0]:
        of_group = [by_name[name] for by_name in found]
        cells = [_with_interval(group.auroc, group.interval) for group in of_group]
        best = [group.auroc == max(other.auroc for other in of_group) for group in of_group]
        rows.append((escape(name), [str(of_group[0].size), *cells], [False, *best]))
    head = ["AUROC (%)", "pictures" if result.pictures is not None else "items", *result.scores]
    table = table_html("groups", head, rows)
    return f"""<details open><summary>AUROC of each kind of anomaly</summary>
<p>Each against all normals.</p>{table}</details>"""


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{_percent(value)} <small>{_percent(interval[0])} – {_percent(interval[1])}</small>"


def _above(result: Result) -> dict[str, float]:
    """`above_threshold` of the diffusion method; nothing where the result has no threshold."""
    if result.threshold is None:
        return {}
    return above_threshold(result.labels, next(iter(result.scores.values())), result.threshold)


def _at_threshold(result: Result) -> str:
    if not (shares := _above(result)):
        return ""
    false, found = shares.values()
    return f"""<p>Above the threshold {result.threshold:.4g}, taken from training normals, lie {100 * found:.1f} % of the
anomalies and {100 * false:.1f} % of the normals.</p>"""


def _config(config: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>\n" for key, value in config.items())
    return f'<details><summary>Configuration</summary><table class="config">{rows}</table></details>' if rows else ""
