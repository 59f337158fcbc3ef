"""How detectors scale with the size of pictures, AUROC and seconds by resolution: the paper's Figure 1, and its curve."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from diffad_jax import baselines, detector, results_file, runs, table
from diffad_jax.data.dataset import Dataset
from diffad_jax.errors import InputError, check_choice
from diffad_jax.figures import MUTED, PALETTE, label, stroke, with_legend
from diffad_jax.methods import Detection

CLASSICAL = ("ocsvm", "iforest", "copod")
# Bhosale, Mukherjee, Banerjee & Cuzzolin, Figure 1, Mini-ImageNet at 224x224; COPOD's bar, clearly lower, bears no figure.
PRINTED = {"proposed": 63.5, "ocsvm": 59.4, "iforest": 58.4}
# Positions a side inside each network.
SIDES = {"DiT": 16, "UNet": 32}


def scaled(config: ConfigDict, size: int, num_steps: int | None) -> ConfigDict:
    """The config for pictures of that size: patches grow with the picture, so that the network inside sees no more of it.

    patch_size = size / SIDES[model], 1 where the picture is smaller. num_steps: None keeps those of the config.
    Raises InputError where the patches do not fit, and on a network without patches.
    """
    config = ConfigDict(config.to_dict())
    check_choice("config.model.name", config.model.name, SIDES)
    side = SIDES[config.model.name]
    if size > side and size % side:
        raise InputError(f"resolution: found {size}, allowed for {config.model.name} are multiples of {side}")
    config.model.patch_size = max(1, size // side)
    if num_steps is not None:
        config.training.num_steps = num_steps
    return config


def detect_trained(config: ConfigDict, dataset: Dataset, workdir: Path) -> Detection:
    """The scores of the test pictures by a network trained in workdir, where training that was stopped goes on."""
    runs.train(config, dataset, workdir, progress=False)
    trained = detector.load(workdir)
    started = time.perf_counter()
    scores = trained.score(dataset.test)
    return Detection(scores, trained.statistics.facts["seconds_train"], time.perf_counter() - started)


def detect_classical(name: str, dataset: Dataset, seed: int) -> Detection:
    """The scores of `baselines`, on all pixels; reading the files counts as for the others."""
    started = time.perf_counter()
    scores = baselines.fit_score(name, np.asarray(dataset.train), np.asarray(dataset.test), seed)
    return Detection(scores, 0.0, time.perf_counter() - started)


def resolution(dataset: str) -> int:
    """The resolution in the name of a data set, <name>_<resolution>."""
    return int(dataset.rpartition("_")[2])


class Curves(NamedTuple):
    """Means over seeds, [methods, resolutions], see `table.tabulate`: auroc and seconds; NaN where there is no result."""

    methods: list[str]
    resolutions: list[int]
    auroc: np.ndarray
    seconds: np.ndarray


def curves_of(rows: Sequence[results_file.Row], methods: Sequence[str]) -> Curves:
    """The curves of one kind of pictures at several resolutions."""
    good = [row | {"seconds": table.seconds_of([row])} for row in rows if not row["error"]]
    auroc, seconds = (table.tabulate(good, methods, metric) for metric in ("auroc", "seconds"))
    resolutions = [resolution(name) for name in auroc.datasets]
    order = np.argsort(resolutions)
    return Curves(auroc.methods, sorted(resolutions), auroc.mean[order].T, seconds.mean[order].T)


def normal_name(classes: Sequence[str]) -> str:
    """What is normal, in words for a folder: "normal cat dog"; of five classes or more their number and a hash."""
    named = " ".join(classes)
    if len(classes) > 4:
        named = f"{len(classes)} classes {hashlib.sha256(named.encode()).hexdigest()[:8]}"
    return f"normal {named}"


def draw(curves: Curves) -> Figure:
    """The bars of the largest resolution beside the printed ones; AUROC and seconds over the resolution."""
    figure = Figure(figsize=(14, 4.9), layout="constrained")
    bars, auroc, seconds = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    largest = curves.resolutions[-1]
    label(bars, f"AUROC at {largest}x{largest}", "", "AUROC (%)")
    heights = [*(100 * curves.auroc[:, -1]), *PRINTED.values()]
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(curves.methods))] + [MUTED] * len(PRINTED)
    # A gap between what was measured here and what the paper prints.
    places = [*range(len(curves.methods)), *(len(curves.methods) + 0.6 + i for i in range(len(PRINTED)))]
    drawn = bars.bar(places, np.nan_to_num(heights), color=colours)
    bars.bar_label(drawn, [f"{height:.1f}" if np.isfinite(height) else "–" for height in heights], fontsize=9)
    names = [*curves.methods, *(f"{name}\nprinted,\n224x224" for name in PRINTED)]
    bars.set_xticks(places, names, fontsize=8)
    bars.axhline(50, color=MUTED, linewidth=1, linestyle=":")
    label(auroc, "AUROC by resolution", "Pixels a side", "AUROC (%)")
    label(seconds, "Cost by resolution", "Pixels a side", "Seconds of training and scoring")
    for i, method in enumerate(curves.methods):
        auroc.plot(curves.resolutions, 100 * curves.auroc[i], marker="o", label=method, **stroke(i))
        seconds.plot(curves.resolutions, curves.seconds[i], marker="o", **stroke(i))
    seconds.set_yscale("log")
    for axes in (auroc, seconds):
        axes.set_xscale("log")
        axes.set_xticks(curves.resolutions, [str(size) for size in curves.resolutions])
        axes.minorticks_off()
    return with_legend(figure, "Method")


def markdown(rows: Sequence[results_file.Row], curves: Curves, facts: Mapping[str, str]) -> str:
    """Both tables, methods by resolutions, the printed figures, and failures with their cause."""
    head = [f"{size}x{size}" for size in curves.resolutions]
    text = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    lines = [[method, *table.cells(curves.auroc[i])] for i, method in enumerate(curves.methods)]
    text += "\n" + table.grid(["AUROC (%)", *head], lines)
    costs = [
        [m, *("–" if np.isnan(s) else f"{s:.1f}" for s in curves.seconds[i])] for i, m in enumerate(curves.methods)
    ]
    text += "\n" + table.grid(["seconds", *head], costs)
    text += "\nSeconds are those of training and scoring, with the reading of files.\n"
    printed = ", ".join(f"{name} {value:.1f}" for name, value in PRINTED.items())
    text += f"\nThe paper's Figure 1, Mini-ImageNet at 224x224: {printed}, COPOD clearly lower, not printed.\n"
    return text + table.failures_text(rows)
