"""What the configs of pictures share; each of them names its data, its network and how long it trains.

Any network of the project fits: data in [-1, 1] under noise levels sigma / alpha of 0.05 to 20, EDM preconditioning, and one
score for every kind of anomaly: the one-step denoising errors and biases of five noise levels from 0.1 to 1.3, judged by
their joint distribution over the normals (`calibration.typicality`).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.transform = {"name": "range", "low": 0.0, "high": 255.0}
    config.pipeline = {"workers": 0, "flip": False}
    config.process = {"name": "log_linear", "noise_min": 0.05, "noise_max": 20.0}
    config.denoiser = {"predicts": "edm", "sigma_data": 0.5}
    config.loss = {"name": "weighted", "weighting": "edm"}
    config.optimizer = {"learning_rate": 2e-3, "weight_decay": 0.01}
    config.sampler = {"name": "ddim"}
    config.decoder = {"name": "discretised_gaussian_decoder"}
    # sigma / alpha = 0.1, 0.2, 0.4, 0.8, 1.3
    config.score = {
        "name": "one_step",
        "times": (0.12, 0.23, 0.35, 0.46, 0.54),
        "num_draws": 4,
        "bias": True,
    }
    config.scoring = {"batch_size": 256, "calibration_rows": 512, "combination": "typicality", "smoothing": 0.0}
    return config
