"""U-Net on the house numbers of SVHN, 32x32: one digit is normal.

    python -m experiments.prepare --dataset svhn_cropped --data_dir data/tfds
    python -m experiments.train --config configs/svhn.py:3 --workdir runs/svhn_3
    python -m experiments.evaluate --workdir runs/svhn_3

The argument is that of `_pictures.of_classes`. Pictures are not mirrored, since a mirrored digit is none.
Cost and result: not run, for want of the data; the network is that of configs/cifar10_unet.py.
"""

from ml_collections import ConfigDict

from configs import _pictures, cifar10_unet


def get_config(setting: str = "0") -> ConfigDict:
    config = _pictures.of_classes("svhn_cropped", setting)
    network = cifar10_unet.get_config()
    config.model, config.training = network.model, network.training
    return config
