"""U-Net on ImageNet's pictures at 64x64: some classes are normal, all others anomalies.

    python -m experiments.train --config configs/imagenet64_unet.py --config.data.path=FOLDER \
        --config.data.normal_class=CLASS --workdir runs/imagenet64
    python -m experiments.evaluate --workdir runs/imagenet64

FOLDER holds train/<class> and val/<class>, or <class> alone, half of whose normals then train. The network is that of
Nichol & Dhariwal 2021 ("Improved denoising diffusion probabilistic models") with two blocks a level in place of three:
100,345,859 parameters.

Hardware: an accelerator with bfloat16; one H200 trains on 1,900 pictures/s (docs/performance.md). Result: not run.
"""

from ml_collections import ConfigDict

from configs import _pictures


def get_config() -> ConfigDict:
    config = _pictures.get_config()
    config.data = {"name": "class_folders", "path": "data/imagenet", "size": 64, "normal_class": "", "seed": 1}
    config.pipeline.flip = True
    config.model = {
        "name": "UNet",
        "channels": 128,
        "channel_multipliers": (1, 2, 3, 4),
        "num_blocks": 2,
        "attention_factors": (4, 8),
        "head_channels": 64,
        "patch_size": 1,
        "dtype": "bfloat16",
    }
    config.optimizer = {"learning_rate": 2e-4}
    config.training = {"num_steps": 100_000, "batch_size": 256, "checkpoint_every": 5000}
    config.scoring.update({"batch_size": 128, "combination": "memory", "smoothing": 2.0})
    return config
