"""U-Net on one category in MVTec-AD's folder layout, 256x256: defects found and located.

    python -m experiments.train --config configs/mvtec_unet.py --config.data.path=FOLDER/hazelnut --workdir runs/hazelnut
    python -m experiments.evaluate --workdir runs/hazelnut

FOLDER/hazelnut holds train/good, test/<defect> and, for the pixel measures, ground_truth/<defect>. The network learns random
crops of 128 pixels and reads whole pictures in overlapping patches, whose errors and biases are compared with a memory of the
normals' (`diffad_jax.memory`); `--config.data.size` and `--config.pipeline.crop` change both (a crop of 0: whole pictures).

Hardware: an accelerator with bfloat16. Cost and result at this size: not run.
"""

from ml_collections import ConfigDict

from configs import _pictures


def get_config() -> ConfigDict:
    config = _pictures.get_config()
    config.data = {"name": "mvtec", "path": "data/mvtec/hazelnut", "size": 256}
    config.transform = {"name": "contrast"}
    config.pipeline.update({"flip": True, "crop": 128})
    config.model = {
        "name": "UNet",
        "channels": 128,
        "channel_multipliers": (1, 1, 2, 3, 4),
        "num_blocks": 1,
        "attention_factors": (8, 16),
        "head_channels": 64,
        "dtype": "bfloat16",
    }
    config.optimizer = {"learning_rate": 2e-4}
    config.training = {"num_steps": 20_000, "batch_size": 32, "checkpoint_every": 2000}
    config.score.update({"num_draws": 2})
    config.scoring.update({"batch_size": 16, "calibration_rows": 1024, "combination": "memory", "smoothing": 12.0})
    return config
