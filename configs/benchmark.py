"""Networks whose speed is measured, on random data, in two suites.

`cpu`, in float32: `unet` (10.7 M parameters, 32x32), `dit_s` (S/4, 32x32), `dit_b` (B/16, 224x224) and `mlp` (512 features).
`gpu`, in bfloat16: `dit_xl_16` and `dit_b_16` (configs/imagenet224_dit.py) and `unet_64` (configs/imagenet64_unet.py), where
memory allows keeping everything for the backward pass and laying the transformer's blocks out one after the other.

    python -m experiments.benchmark --config configs/benchmark.py:unet --shape 32,32,3
"""

from ml_collections import ConfigDict

from configs import imagenet64_unet, imagenet224_dit


def _dit(network: str, depth: int) -> dict:
    return imagenet224_dit.get_config(network).model.to_dict() | {"remat": "none", "unroll": depth}


MODELS = {
    "unet": {"name": "UNet", "channels": 64, "channel_multipliers": (1, 2, 2, 2), "num_blocks": 2, "num_heads": 4}
    | {"attention_factors": (2,)},
    "dit_s": {"name": "DiT", "size": "S", "patch_size": 4},
    "dit_b": {"name": "DiT", "size": "B", "patch_size": 16},
    "mlp": {"name": "MLP"},
    "dit_xl_16": _dit("XL/16", depth=28),
    "dit_b_16": _dit("B/16", depth=12),
    "unet_64": imagenet64_unet.get_config().model.to_dict(),
}
SUITES = {"cpu": ("unet", "dit_s", "dit_b", "mlp"), "gpu": ("dit_xl_16", "dit_b_16", "unet_64")}
SHAPES = {
    "unet": (32, 32, 3),
    "dit_s": (32, 32, 3),
    "dit_b": (224, 224, 3),
    "mlp": (512,),
    "dit_xl_16": (224, 224, 3),
    "dit_b_16": (224, 224, 3),
    "unet_64": (64, 64, 3),
}
BATCH_SIZES = {"unet": 64, "dit_s": 32, "dit_b": 8, "mlp": 64, "dit_xl_16": 256, "dit_b_16": 256, "unet_64": 128}


def get_config(model: str = "unet") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.mesh, config.pipeline = {}, {}  # for what the command line sets in them
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
    if model in SUITES["cpu"]:
        config.score = {"name": "one_step", "times": (0.5,), "num_draws": 1}
    else:
        config.score = {"name": "reconstruction", "times": (0.25,), "num_steps": 5}
    config.scoring = {"batch_size": BATCH_SIZES[model]}
    return config
