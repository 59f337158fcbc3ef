"""The figures of a report: curves, a score histogram, a grid of reconstructions; none touches pyplot's global state."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve  # type: ignore[import-untyped]

from diffad_jax.errors import InputError

# The palette of Okabe and Ito (2008), which stays apart for every common form of colour blindness.
NORMAL, ANOMALY = "#0072B2", "#D55E00"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
INK, MUTED, FAINT = "#1f2937", "#6b7280", "#e5e7eb"
CHANCE: dict[str, Any] = {"color": "#9ca3af", "linewidth": 1, "linestyle": (0, (1, 2))}
OUTLINE = (("#000000", 3.0), ("#22d3ee", 1.6))  # the colour that no heat map has, on a rim that shows on white
DPI = 144


class Pictures(NamedTuple):
    """Test pictures: `x_0`, `x_t`, `reconstruction` [K, H, W, C] in [-1, 1], `error` [K, H, W], `labels` and `scores` [K].

    `masks` [K, H, W], bool, are True where the defect is.
    """

    x_0: np.ndarray
    x_t: np.ndarray
    reconstruction: np.ndarray
    error: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None


def png(figure: Figure) -> bytes:
    """`figure` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def webp(image: bytes) -> bytes:
    """The bytes of a PNG file as those of a WebP file: of photographs and noise about a fifth, with no visible loss."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(buffer, format="webp", quality=90)
    return buffer.getvalue()


def draw(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    measured: Mapping[str, Mapping[str, float]],
    threshold: float | None,
    pictures: Pictures | None,
) -> dict[str, Figure]:
    """All figures of one setting by name: roc, precision-recall, scores (of the first method), and pictures if given.

    labels [M] are 0 and 1, `scores` map each method to [M], `measured` maps it to the fractions of `metrics`.
    Raises InputError as `picture_grid` does.
    """
    labels, first = np.asarray(labels), next(iter(scores))
    figures = {
        "roc": _roc(labels, scores, measured),
        "precision-recall": _precision_recall(labels, scores, measured),
        "scores": _histogram(labels, np.asarray(scores[first]), first, threshold),
    }
    return figures if pictures is None else figures | {"pictures": picture_grid(pictures)}


def picture_grid(pictures: Pictures) -> Figure:
    """Rows input, noised, reconstruction and heat map; a column a picture, most anomalous first.

    A band has twelve columns of an inch, or six of two inches for pictures that would lose pixels in one. The outlines of
    the masks lie on the inputs and on the heat maps, which share one scale, from 0 to the 99.5 % quantile of those shown; it
    goes with the square root, so that a weak defect shows beside a strong one.
    Raises InputError on shapes that do not fit together, channels other than 1 or 3, and numbers that are not finite.
    """
    shown = _sorted(pictures)
    count, height, width = shown.error.shape
    inch = 1 if width <= DPI else 2
    top = max(0.0, float(np.quantile(shown.error, 0.995))) or 1.0
    heat = ScalarMappable(PowerNorm(0.5, 0, top), "magma")
    heat_maps = np.asarray(heat.cmap(heat.norm(np.maximum(shown.error, 0))))[..., :3]
    rows = np.stack([_rgb(shown.x_0), _rgb(shown.x_t), _rgb(shown.reconstruction), heat_maps])

    bands, gap = -(-count * inch // 12), max(1, round(0.06 * width))
    columns = -(-count // bands)
    tile_height, tile_width = height + gap, width + gap
    # Placed by hand in inches, one to a picture: a layout engine cannot foresee what square pixels do to the axes.
    left, right, head = 1.15, 0.85, 0.5
    across, down = inch * columns * tile_width / width, inch * 4 * tile_height / width
    size = np.array([left + across + right, bands * (head + down)])
    figure = Figure(figsize=tuple(size))
    for band in range(bands):
        part = slice(band * columns, (band + 1) * columns)
        labels, scores, images = shown.labels[part], shown.scores[part], rows[:, part]
        canvas = np.ones((4 * tile_height, columns * tile_width, 3))
        defect = np.zeros(canvas.shape[:2])
        for row, column in np.ndindex(images.shape[:2]):
            y, x = row * tile_height, column * tile_width
            canvas[y : y + height, x : x + width] = images[row, column]
            if shown.masks is not None and row in (0, 3):
                defect[y : y + height, x : x + width] = shown.masks[part][column]
        bottom = size[1] - (band + 1) * (head + down)
        axes = figure.add_axes((left / size[0], bottom / size[1], across / size[0], down / size[1]))
        axes.imshow(canvas, aspect="auto")
        if defect.any():
            for colour, line in OUTLINE:
                axes.contour(defect, [0.5], colors=colour, linewidths=line)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=INK)
        titles = [f"{'anomaly' if y else 'normal'}\n{s:.3g}" for y, s in zip(labels, scores, strict=True)]
        axes.set_xticks(np.arange(len(titles)) * tile_width + (width - 1) / 2, titles, fontsize=9)
        for tick, label in zip(axes.get_xticklabels(), labels, strict=True):
            tick.set_color(ANOMALY if label else NORMAL)
        names = ["input $x_0$", "noised $x_t$", "reconstruction", "heat map"]
        axes.set_yticks(np.arange(4) * tile_height + (height - 1) / 2, names, fontsize=10)
    error_row = size[1] - head - down + inch * gap / width
    beside = (1 - (right - 0.02) / size[0], error_row / size[1], 0.1 / size[0], inch * height / width / size[1])
    scale = figure.add_axes(beside)
    figure.colorbar(heat, cax=scale)
    scale.spines[:].set_visible(False)
    scale.tick_params(length=0, labelsize=7, labelcolor=MUTED)
    return figure


def labelled_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty square figure and its axes, titled and labelled in the style of all figures here."""
    figure = Figure(figsize=(4.6, 4.7), layout="constrained")
    axes = figure.subplots()
    label(axes, title, x, y)
    return figure, axes


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles and labels axes in the style of all figures here."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(color=MUTED, labelcolor=MUTED)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def stroke(i: int) -> dict[str, Any]:
    """How the i-th method's line is drawn: the first wide and on top, the others with dashes that tell them apart too."""
    width, height = (2.6, 3) if i == 0 else (1.5, 2)
    dashes = DASHES[i % len(DASHES)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": dashes, "linewidth": width, "zorder": height}


def with_legend(figure: Figure, title: str) -> Figure:
    """`figure` with a legend of all its labels below the axes, where it never hides a curve."""
    style: dict[str, Any] = {"fontsize": 9, "title_fontsize": 9, "labelcolor": INK, "edgecolor": FAINT}
    legend = figure.legend(loc="outside lower center", ncols=2, title=title, **style)
    legend.get_title().set_color(INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _rgb(pictures: np.ndarray) -> np.ndarray:
    """[K, H, W, 1 or 3] in [-1, 1] -> [K, H, W, 3] in [0, 1]; noised pictures leave the range and are clipped."""
    return np.broadcast_to(np.clip((pictures + 1) / 2, 0, 1), (*pictures.shape[:3], 3))


def _sorted(pictures: Pictures) -> Pictures:
    arrays = [np.asarray(value) for value in pictures if value is not None]
    shape = arrays[0].shape
    if len(shape) != 4 or 0 in shape or shape[3] not in (1, 3):
        raise InputError(f"pictures.x_0: found shape {shape}, allowed is [K, H, W, C] with C of 1 or 3, none of them 0")
    allowed = (shape, shape, shape, shape[:3], shape[:1], shape[:1], shape[:3])
    for name, array, need in zip(Pictures._fields, arrays, allowed):
        if array.shape != need:
            raise InputError(f"pictures.{name}: found shape {array.shape}, allowed is {need} as x_0 has {shape}")
        if bad := np.count_nonzero(~np.isfinite(array)):
            raise InputError(f"pictures.{name}: {bad} of {array.size} numbers are not finite")
    order = np.argsort(-np.asarray(pictures.scores), kind="stable")
    return Pictures(*(array[order] for array in arrays))


def _roc(labels: np.ndarray, scores: Mapping[str, np.ndarray], measured: Mapping[str, Mapping[str, float]]) -> Figure:
    figure, axes = labelled_axes("ROC", "False positive rate", "True positive rate")
    for i, (method, values) in enumerate(scores.items()):
        false_rate, true_rate, _ = roc_curve(labels, values)
        axes.plot(false_rate, true_rate, label=f"{method}  {100 * measured[method]['auroc']:.2f}", **stroke(i))
    axes.plot([0, 1], [0, 1], label="chance  50.00", **CHANCE)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return with_legend(figure, "AUROC (%)")


def _precision_recall(
    labels: np.ndarray, scores: Mapping[str, np.ndarray], measured: Mapping[str, Mapping[str, float]]
) -> Figure:
    figure, axes = labelled_axes("Precision and recall", "Recall", "Precision")
    for i, (method, values) in enumerate(scores.items()):
        precision, recall, _ = precision_recall_curve(labels, values, drop_intermediate=True)
        precision[-1] = precision[-2]  # scikit-learn closes the curve at (0, 1), which nothing measured
        # Steps, since their area is the average precision; slanted lines would promise more.
        style = stroke(i) | {"drawstyle": "steps-post"}
        axes.plot(recall, precision, label=f"{method}  {100 * measured[method]['aupr']:.2f}", **style)
    share = float(np.mean(labels))
    axes.plot([0, 1], [share, share], label=f"chance  {100 * share:.2f}", **CHANCE)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return with_legend(figure, "AUPR (%)")


def _histogram(labels: np.ndarray, scores: np.ndarray, method: str, threshold: float | None) -> Figure:
    """The outermost bins hold what lies beyond the 0.5 % and 99.5 % quantiles, so that one outlier squeezes nothing."""
    figure, axes = labelled_axes(f"Scores of {method}", "Score (higher = more anomalous)", "Share of the class (%)")
    low, high = (float(q) for q in np.quantile(scores, [0.005, 0.995]))
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if logarithmic := low > 0 and high > 50 * low:
        axes.set_xscale("log")
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high, 41)
    inside = np.clip(scores, edges[0], edges[-1])
    for value, name, colour in ((0, "normal", NORMAL), (1, "anomaly", ANOMALY)):
        counts, _ = np.histogram(inside[labels == value], edges)
        share = 100 * counts / counts.sum()
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(share, edges, color=colour, linewidth=1.6, label=f"{name} ({counts.sum()})")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.4, linestyle="--", label=f"threshold {threshold:.4g}")
    return with_legend(figure, "Outermost bins hold the tails")
