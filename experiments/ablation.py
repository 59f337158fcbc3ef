"""What the claims rest on: AUROC against t*, reverse steps, sampler, noise draws, parametrisation and score.

python -m experiments.ablation --data_dir FOLDER --out DIR [--rows X,Y] [--only time,steps]

Each ablation changes one thing of configs/adbench.py, on five rows of the folder by default. Writes ablation.csv and one PNG
each into DIR. The labels only measure.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs import adbench as base
from diffad_jax import csv_files, methods
from diffad_jax.assembly import SAMPLERS
from diffad_jax.console import bar
from diffad_jax.data import transforms
from diffad_jax.data.adbench import adbench
from diffad_jax.data.dataset import evenly_spaced
from diffad_jax.figures import MUTED, NORMAL, labelled_axes, png
from diffad_jax.files import write_atomically
from diffad_jax.metrics import metrics
from diffad_jax.samplers import GRIDS
from experiments import cli

Changes = dict[str, Any]
"""Dotted config keys and their new values."""
SCORES: dict[str, Changes] = {
    "l2": {},
    "l1": {"score.distance": "l1"},
    "one step": {"score.num_steps": 1},
    "encode-decode": {"score": {"name": "encode_decode", "times": (0.5,), "num_steps": 4}},
    "bound": {"score": {"name": "bound", "num_steps": 20}},
    "three levels": {"score.times": (0.35, 0.5, 0.65)},
}
ABLATIONS: dict[str, dict[str, Changes]] = {
    "time": {str(t): {"score.times": (t,)} for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)},
    "steps": {str(n): {"score.num_steps": n} for n in (1, 2, 4, 8, 16)},
    "sampler": {name: {"sampler.name": name} for name in SAMPLERS},
    "grid": {name: {"score.grid": name} for name in GRIDS},
    "draws": {str(n): {"score.num_draws": n} for n in (1, 2, 4, 8, 16)},
    # On the whole vector, since only a preconditioned network may leave out features.
    "parametrisation": {p: {"denoiser.predicts": p, "model.features": None} for p in ("eps", "x_0", "v", "edm")},
    "score": SCORES,
}
TITLES = {"time": "$t^*$", "steps": "reverse steps", "draws": "noise draws"}
TRAINED = ("parametrisation",)

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of ADBench .npz files of X, y.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory for the results.", required=True)
ROWS = flags.DEFINE_list("rows", [], "Data sets; five of the folder, evenly spaced, by default.")
ONLY = flags.DEFINE_list("only", list(ABLATIONS), "Ablations.")


def changed(changes: Changes) -> ConfigDict:
    """configs/adbench.py with these changes."""
    config = base.get_config()
    for key, value in changes.items():
        *path, last = key.split(".")
        place = config
        for name in path:
            place = place[name]
        with place.ignore_type():
            place[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def aurocs(name: str, ablations: list[str]) -> list[tuple[str, str, str, float]]:
    """(ablation, value, dataset, AUROC) for one data set; scoring ablations share one trained network."""
    dataset = adbench(DATA_DIR.value, name)
    normals, test = np.asarray(dataset.train), np.asarray(dataset.test)
    transform = transforms.fitted(methods.WHITENING, normals)
    width = normals.shape[1]
    standard = methods.train(methods.diffusion_programs(changed({}), width), transform, normals, 0)
    found = []
    for ablation in ablations:
        for value, changes in ABLATIONS[ablation].items():
            programs, params = partial(methods.diffusion_programs, changed(changes)), standard
            if ablation in TRAINED:
                params = methods.train(programs(width), transform, normals, 0)
            scores = methods.scorer(programs, params, transform, normals, 0)(test)
            found.append((ablation, value, name, metrics(dataset.labels, scores)["auroc"]))
    return found


def drawn(ablation: str, lines: list[tuple[str, str, str, float]]) -> Figure:
    """AUROC against the ablated value: thick the mean over data sets, thin each set, moved to that mean to be compared."""
    values = list(ABLATIONS[ablation])
    by_dataset = np.array([line[3] for line in lines]).reshape(-1, len(values))
    figure, axes = labelled_axes(f"AUROC by {ablation}", TITLES.get(ablation, ablation), "AUROC (%)")
    moved = by_dataset - by_dataset.mean(axis=1, keepdims=True) + by_dataset.mean()
    axes.plot(values, 100 * moved.T, color=MUTED, linewidth=0.8, marker=".")
    axes.plot(values, 100 * by_dataset.mean(axis=0), color=NORMAL, linewidth=2.6, marker="o", label="mean")
    axes.tick_params(axis="x", labelrotation=30 if ablation not in TITLES else 0)
    axes.legend(frameon=False)
    return figure


def main(_: list[str]) -> None:
    ablations = cli.chosen("only", ONLY.value or [""], ABLATIONS)
    names, out = cli.chosen_rows(DATA_DIR.value, ROWS.value), Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    spaced = [names[i] for i in evenly_spaced(len(names), 5)]
    lines = [line for name in bar(names if ROWS.value else spaced, unit="set") for line in aurocs(name, ablations)]
    write_atomically(out / "ablation.csv", csv_files.lines([("ablation", "value", "dataset", "auroc"), *lines]))
    for only in ablations:
        write_atomically(out / f"{only}.png", png(drawn(only, [line for line in lines if line[0] == only])))
    print(f"{out / 'ablation.csv'} and {', '.join(f'{only}.png' for only in ablations)}")


if __name__ == "__main__":
    cli.run(main)
