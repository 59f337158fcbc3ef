"""U-Net on FashionMNIST, 28x28: one kind of clothing is normal.

    python -m experiments.prepare --dataset fashion_mnist --data_dir data/tfds
    python -m experiments.train --config configs/fashion_mnist.py:Sandal --workdir runs/sandal
    python -m experiments.evaluate --workdir runs/sandal

The argument is that of `_pictures.of_classes`. Cost and result: not run, for want of the data; network and training are those
of configs/mnist_c.py, which took 118 to 227 s on 2 CPU cores.
"""

from ml_collections import ConfigDict

from configs import _pictures, mnist_c


def get_config(setting: str = "0") -> ConfigDict:
    config = _pictures.of_classes("fashion_mnist", setting)
    digits = mnist_c.get_config()
    config.model, config.training, config.denoiser = digits.model, digits.training, digits.denoiser
    return config
