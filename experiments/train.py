"""Trains a detector on the normals of a data set.

python -m experiments.train --config configs/digits.py --workdir runs/digits [--config.key=value ...]

A config with several training sets (ten digit settings, an ADBench folder) trains one model each, in sub-folders of the
work directory. A run that was stopped continues; a finished one is left alone.
"""

from pathlib import Path

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
        runs.train(CONFIG.value, dataset, root if len(trainings) == 1 else root / dataset.name)


if __name__ == "__main__":
    cli.run(main)
