"""Diffusion models against classical detectors on raw pictures of growing size: the paper's Figure 1, measured.

python -m experiments.figure1 --data_dir FOLDER --normal CLASS[,CLASS] --out DIR [--resolutions 32,64,128,224] [--seeds N]
    [--methods dit,unet,ocsvm,iforest,copod] [--steps N] [--dit FILE] [--unet FILE] [--dit.training.batch_size=64 ...]

FOLDER holds a folder of pictures for each class, see `folders.class_folders`. The two networks are trained at every
resolution in DIR/runs, for as long as their configs say (for an accelerator) or --steps, with patches that grow with the
picture (`scalability.scaled`). Writes results.csv, figure1.png and figure1.md into DIR, and run.json and data.json, which
tell what of. A command that was stopped goes on; what failed is tried again. Seed s splits the data by s + 1.
"""

import hashlib
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from configs import imagenet64_unet, imagenet224_dit
from diffad_jax import plan, results_file, scalability
from diffad_jax.data.folders import picture_folder
from diffad_jax.data.loading import load
from diffad_jax.errors import InputError
from diffad_jax.figures import png
from diffad_jax.files import write_atomically
from diffad_jax.loop import Stopped
from diffad_jax.metrics import metrics
from diffad_jax.results_file import Key
from diffad_jax.workdir import save_config
from experiments import cli

FILES = {"dit": f"{imagenet224_dit.__file__}:S/16", "unet": imagenet64_unet.__file__}
NETWORKS = {name: cli.config_flag(file, name, "Config of the network.") for name, file in FILES.items()}
ALL = (*NETWORKS, *scalability.CLASSICAL)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of one folder of pictures a class.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory for the results.", required=True)
NORMAL = flags.DEFINE_list("normal", None, "The normal classes.", required=True)
RESOLUTIONS = flags.DEFINE_list("resolutions", ["32", "64", "128", "224"], "Pixels a side.")
CHOSEN = flags.DEFINE_list("methods", list(ALL), "Methods.")
STEPS = flags.DEFINE_integer("steps", None, "Training steps, in place of those of the configs.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)


def keys() -> list[Key]:
    """(data set, method, what is normal, seed) of every result that is asked for, small pictures first."""
    methods = cli.chosen("methods", CHOSEN.value or [""], ALL)
    folder, normal = Path(DATA_DIR.value).resolve().name, scalability.normal_name(NORMAL.value)
    sizes = sorted(set(cli.counts("resolutions", RESOLUTIONS.value)))
    return [Key(f"{folder}_{r}", m, normal, s) for r in sizes for s in range(SEEDS.value) for m in methods]


def data_of(key: Key) -> dict[str, Any]:
    """config.data of a result."""
    options = {"size": scalability.resolution(key.dataset), "normal_class": tuple(NORMAL.value), "seed": key.seed + 1}
    return {"name": "class_folders", "path": DATA_DIR.value, **options}


def config_of(key: Key) -> ConfigDict:
    """The config of a network's result."""
    config = scalability.scaled(NETWORKS[key.method].value, scalability.resolution(key.dataset), STEPS.value)
    config.data, config.seed = data_of(key), key.seed
    return config


def workdir_of(key: Key) -> Path:
    """The work directory of a network's result."""
    return Path(OUT.value) / "runs" / f"{key.dataset}_{key.protocol.replace(' ', '_')}" / f"{key.method}_{key.seed}"


def measure(key: Key) -> results_file.Row:
    """The row of a result: its metrics, or the cause of its failure."""
    try:
        (dataset,) = load(data_of(key))
        if key.method in NETWORKS:
            found = scalability.detect_trained(config_of(key), dataset, workdir_of(key))
        else:
            found = scalability.detect_classical(key.method, dataset, key.seed)
        values = metrics(dataset.labels, found.scores)
    except Stopped:
        raise
    except Exception as error:
        return results_file.row(key, {"error": f"{type(error).__name__}: {error}"})
    return results_file.measured(key, dataset, found, values)


def digest(folder: Path) -> str:
    """A hash of the names and sizes of the pictures in a folder."""
    found = hashlib.sha256()
    for file in picture_folder(folder):
        found.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:32]


def main(_: list[str]) -> None:
    asked, out = keys(), Path(OUT.value)
    load(data_of(asked[0]))
    for key in asked:
        # What cannot be, or was made with other settings, is refused before hours are spent.
        if key.method in NETWORKS:
            size = scalability.resolution(key.dataset)
            plan.define(config_of(key), (size, size, 3))
            if (workdir_of(key) / "config.json").exists():
                save_config(workdir_of(key), config_of(key))
    data_dir = Path(DATA_DIR.value)
    with results_file.results_in(out, data_dir, {data_dir.resolve().name: digest(data_dir)}) as results:
        for key in results.missing(asked):
            results.append(measure(key))
    rows = [row for row in results.rows if results_file.key_of(row) in asked]
    curves = scalability.curves_of(rows, list(dict.fromkeys(method for _, method, *_ in asked)))
    if not curves.methods:
        raise InputError(f"no method succeeded; the first failed with {rows[0]['error']}")
    train, test = ({str(row[count]) for row in rows if row[count]} for count in ("n_train", "n_test"))
    facts = {
        "command": shlex.join(["python", "-m", "experiments.figure1", *sys.argv[1:]]),
        "data": f"{data_dir.name}, {asked[0].protocol}, {'/'.join(train)} to train on, {'/'.join(test)} to test on",
        "device": f"{jax.devices()[0].device_kind}, JAX {jax.__version__}",
        "seeds": str(SEEDS.value),
    }
    write_atomically(out / "figure1.png", png(scalability.draw(curves)))
    text = scalability.markdown(rows, curves, facts)
    write_atomically(out / "figure1.md", text.encode())
    print(f"{text}\nfigure: {out / 'figure1.png'}")


if __name__ == "__main__":
    cli.run(main)
