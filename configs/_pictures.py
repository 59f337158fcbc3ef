"""What the configs of pictures share; each of them names its data, its network and how long it trains.

Any network of the project fits: data in [-1, 1] under noise levels sigma / alpha of 0.05 to 20, EDM preconditioning, and one
score for every kind of anomaly: the one-step denoising errors of five noise levels from 0.1 to 1.3, their biases and the
steps of these, judged by their joint distribution over the normals, and the distance from the nearest normal
(`calibration.fisher`).
Where colours tell classes apart (`of_classes`) each is taken in grey and in two opponent colours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.mesh, config.pipeline = {}, {}  # for what the command line sets in them
    config.transform = {"name": "range", "low": 0.0, "high": 255.0}
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
        "gradients": True,
    }
    config.scoring = {"batch_size": 256, "calibration_rows": 512, "combination": "fisher"}
    return config


def small_unet(*channel_multipliers: int) -> dict:
    """A U-Net for a CPU: 2x2 pixels folded into channels, one residual block a level."""
    return {
        "name": "UNet",
        "channels": 32,
        "channel_multipliers": channel_multipliers,
        "num_blocks": 1,
        "norm_groups": 8,
        "patch_size": 2,
        "resample": "conv",
    }


def of_classes(dataset: str, setting: str) -> ConfigDict:
    """The shared config on a classification set of TFDS (`experiments.prepare --dataset NAME`), 0..255.

    setting: a class, which is the normal one; "anomalous:CLASS", which makes it the anomaly, as in the paper's text; or
    "each", which trains every class of an `.npz` of x_train, y_train, x_test, y_test as the normal one in turn.
    """
    config = get_config()
    config.score.colours = True
    side, _, anomalous = setting.partition(":")
    if setting == "each":
        config.data = {"name": "npz_classes_each", "path": f"data/{dataset}.npz", "setting": "normal_class"}
    else:
        classes = {"anomalous_class": anomalous} if side == "anomalous" and anomalous else {"normal_class": setting}
        config.data = {"name": "tfds", "dataset": dataset, "data_dir": "data/tfds", **classes}
    return config
