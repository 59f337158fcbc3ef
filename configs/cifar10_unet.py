"""U-Net on raw CIFAR-10, 32x32: one class is normal.

    python -m experiments.train --config configs/cifar10_unet.py:airplane --workdir runs/airplane
    python -m experiments.evaluate --workdir runs/airplane

The argument is as in configs/cifar10_dit.py.
"""

from ml_collections import ConfigDict

from configs import cifar10_dit


def get_config(setting: str = "airplane") -> ConfigDict:
    config = cifar10_dit.get_config(setting)
    config.model = {
        "name": "UNet",
        "channels": 32,
        "channel_multipliers": (1, 2, 2),
        "num_blocks": 1,
        "norm_groups": 8,
        "patch_size": 2,
        "resample": "conv",
    }
    config.optimizer.learning_rate = 2e-3
    return config
