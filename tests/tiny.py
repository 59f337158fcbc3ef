"""A run of seconds, as a config file for the commands and as a config for tests in process."""

from ml_collections import ConfigDict


def get_config(data: str = "digits") -> ConfigDict:
    """`digits`: a small U-Net on scikit-learn's digits; any other word: a small MLP on the npz files of that folder."""
    config = ConfigDict()
    config.seed = 0
    config.process = {"name": "log_linear", "noise_min": 0.05, "noise_max": 20.0}
    config.denoiser = {"predicts": "edm", "sigma_data": 0.75}
    config.loss = {"name": "weighted", "weighting": "edm"}
    config.optimizer = {"learning_rate": 2e-3}
    config.training = {
        "num_steps": 20,
        "batch_size": 16,
        "steps_per_dispatch": 1,
        "accumulate": 1,
        "log_every": 5,
        "checkpoint_every": 10,
    }
    config.sampler = {"name": "ddpm", "variance": "small"}
    config.decoder = {"name": "gaussian_decoder"}
    config.score = {"name": "one_step", "times": (0.5,), "num_draws": 1, "distance": "l2"}
    config.scoring = {"batch_size": 64, "calibration_rows": 64, "picture_steps": 1}
    if data == "digits":
        config.data = {"name": "digits", "anomalous_class": 0}
        config.transform = {"name": "range", "low": 0.0, "high": 16.0}
        config.model = {"name": "UNet", "channels": 8, "channel_multipliers": (1,), "norm_groups": 4, "num_blocks": 1}
    else:
        config.data = {"name": "adbench_folder", "path": data}
        config.transform = {"name": "standardise"}
        config.model = {"name": "MLP", "width": 16, "depth": 1}
    return config
