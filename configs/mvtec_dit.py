"""DiT on one category in MVTec-AD's folder layout, 256x256; everything else as in configs/mvtec_unet.py.

python -m experiments.train --config configs/mvtec_dit.py --config.data.path=FOLDER/hazelnut --workdir runs/hazelnut
python -m experiments.evaluate --workdir runs/hazelnut

Hardware: an accelerator with bfloat16. Cost and result: not run.
"""

from ml_collections import ConfigDict

from configs import mvtec_unet


def get_config() -> ConfigDict:
    config = mvtec_unet.get_config()
    config.model = {"name": "DiT", "size": "B", "patch_size": 8, "dtype": "bfloat16"}
    return config
