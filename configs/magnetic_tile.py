"""Small U-Net on the magnetic tiles of Huang et al. 2018 in MVTec-AD's folder layout, 96x96, for a CPU.

python -m experiments.train --config configs/magnetic_tile.py --config.data.path=FOLDER --workdir runs/tiles
python -m experiments.evaluate --workdir runs/tiles
"""

from ml_collections import ConfigDict

from configs import pictures


def get_config() -> ConfigDict:
    config = pictures.get_config()
    config.data = {"name": "mvtec", "path": "data/magnetic_tile", "size": 96}
    config.pipeline.flip = True
    config.model = {
        "name": "UNet",
        "channels": 32,
        "channel_multipliers": (1, 2, 2),
        "num_blocks": 1,
        "norm_groups": 8,
        "patch_size": 3,
        "resample": "conv",
    }
    config.training = {"num_steps": 600, "batch_size": 16}
    config.score.num_draws = 2
    config.scoring.update({"batch_size": 64, "calibration_rows": 256, "smoothing": 1.0})
    return config
