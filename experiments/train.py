"""Trains a detector on the normals of a data set.

python -m experiments.train --config configs/digits.py --workdir runs/digits [--config.key=value ...]

A config with several training sets (ten digit settings, an ADBench folder) trains one model each, in sub-folders of the
work directory. A run that was stopped continues; a finished one is left alone. Each says what trains and what there is to
test, and where it is when it is done.
"""

from pathlib import Path

import jax
from absl import flags

from diffad_jax import runs
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.loading import load
from diffad_jax.distributed import check_alike, together
from diffad_jax.errors import InputError
from diffad_jax.ranges import check_sections
from experiments import cli

CONFIG = cli.config_flag()
cli.distributed_flags()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
flags.mark_flag_as_required("config")


def main(_: list[str]) -> None:
    root = Path(WORKDIR.value)
    with together():
        check_sections(CONFIG.value, "data")
        # Sets that share their training normals share one model.
        trainings: dict[int, Dataset] = {}
        for dataset in load(CONFIG.value.data):
            trainings.setdefault(id(dataset.train), dataset)
        if len(trainings) > 1 and (root / "config.json").exists():
            raise InputError(f"--workdir: {root} holds one run, and the config makes {len(trainings)}; choose another")
        if len(trainings) == 1 and any(root.glob("*/config.json")):
            raise InputError(f"--workdir: {root} holds runs in its folders, and the config makes one; choose another")
    check_alike({"--workdir": WORKDIR.value, "the names of data sets": [d.name for d in trainings.values()]})
    for dataset in trainings.values():
        workdir = root if len(trainings) == 1 else root / dataset.name
        say(f"{dataset.name}: {described(dataset)}")
        runs.train(CONFIG.value, dataset, workdir)
        say(f"trained: {workdir}")


def described(dataset: Dataset) -> str:
    """What of a data set trains, and what there is to test on."""
    test = f"to test {(dataset.labels == 0).sum()} normals and {(dataset.labels == 1).sum()} anomalies"
    shape = " x ".join(map(str, dataset.train.shape[1:]))
    return f"{len(dataset.train)} normals of {shape} values, {test if len(dataset.labels) else 'nothing to test'}"


def say(line: str) -> None:
    """Prints a line, of several processes once."""
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
