"""Networks whose speed is measured, on random data: `unet` (10.7 M parameters, 32x32), `dit_s` (S/4, 32x32), `dit_b` (B/16,
224x224) and `mlp` (512 features).

    python -m experiments.benchmark --config configs/benchmark.py:unet
"""

from ml_collections import ConfigDict

MODELS = {
    "unet": {"name": "UNet", "channels": 64, "channel_multipliers": (1, 2, 2, 2), "num_blocks": 2, "num_heads": 4}
    | {"attention_factors": (2,)},
    "dit_s": {"name": "DiT", "size": "S", "patch_size": 4},
    "dit_b": {"name": "DiT", "size": "B", "patch_size": 16},
    "mlp": {"name": "MLP"},
}
SHAPES = {"unet": (32, 32, 3), "dit_s": (32, 32, 3), "dit_b": (224, 224, 3), "mlp": (512,)}
BATCH_SIZES = {"unet": 64, "dit_s": 32, "dit_b": 8, "mlp": 64}


def get_config(model: str = "unet") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.transform = {"name": "standardise"}
    config.process = {"name": "linear"}
    config.model = MODELS[model]
    config.denoiser = {"predicts": "eps"}
    config.loss = {"name": "simple"}
    config.optimizer = {"learning_rate": 1e-3}
    config.training = {"num_steps": 1000, "batch_size": BATCH_SIZES[model]}
    # A step of the MLP takes milliseconds, a dispatch from Python a good part of one.
    config.training.steps_per_dispatch = 50 if model == "mlp" else 1
    # In passes of 16 pictures a U-Net needs less memory and, on a CPU, less time.
    config.training.accumulate = 4 if model == "unet" else 1
    config.sampler = {"name": "ddim"}
    config.decoder = {"name": "gaussian_decoder"}
    config.score = {"name": "one_step", "times": (0.5,), "num_draws": 1}
    config.scoring = {"batch_size": BATCH_SIZES[model]}
    return config
