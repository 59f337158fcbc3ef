"""A small DiT on ADBench sets: tokens are runs of 64 whitened features; data, process and score as in configs/adbench.py.

python -m experiments.train --config configs/adbench_dit.py --config.data.path=FOLDER --workdir runs/adbench_dit
python -m experiments.evaluate --workdir runs/adbench_dit

Result over the 21 ResNet18 sets of docs/results.md: mean AUROC 79.07 %, on 2 CPU cores
(`python -m experiments.table1 --data_dir FOLDER --out DIR --methods dit`).
"""

from ml_collections import ConfigDict

from configs import adbench
from diffad_jax import defaults


def get_config() -> ConfigDict:
    return adbench.of_rows(defaults.dit())
