"""The settings of the networks for vectors: of configs/adbench.py and adbench_dit.py, and of the methods in `methods`."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def mlp() -> ConfigDict:
    """A residual MLP on whitened rows, reconstructed from one noise level; the data are for a config to name."""
    config = ConfigDict()
    config.seed = 0
    # The shrinkage is lowered to D / N where rows are many, see `whitening`.
    config.transform = {"name": "whiten", "pooling": 1.0, "shrinkage": 0.3}
    config.process = {"name": "log_linear", "noise_min": 0.2, "noise_max": 8.0}
    config.model = {"name": "MLP", "width": 128, "depth": 1, "features": 128}
    config.denoiser = {"predicts": "edm", "sigma_data": 1.0}
    config.loss = {"name": "weighted", "weighting": "edm"}
    config.optimizer = {"learning_rate": 2e-3}
    config.training = {"num_steps": 300, "batch_size": 128, "steps_per_dispatch": 100, "ema_decay": 0.99}
    config.sampler = {"name": "ddim"}
    config.decoder = {"name": "gaussian_decoder"}
    # From sigma / alpha = 1.3 back to the datum; None: as many draws of noise as the number of columns asks for.
    config.score = {"name": "reconstruction", "times": (0.5,), "num_steps": 4, "num_draws": placeholder(int)}
    config.scoring = {"batch_size": 1024}
    return config


def dit() -> ConfigDict:
    """A small DiT in place of the MLP, whose tokens are runs of 64 whitened features."""
    config = mlp()
    config.model = {"name": "DiT", "patch_size": 64, "width": 64, "depth": 2, "num_heads": 4}
    config.training.num_steps = 200
    config.training.batch_size = 64
    return config
