"""A DiT for 2 CPU cores on ImageNet's pictures at 224x224; data and kind of score as in configs/imagenet224_dit.py.

python -m experiments.train --config configs/imagenet224_small.py --config.data.path=FOLDER \
    --config.data.normal_class=CLASS --workdir runs/imagenet224
python -m experiments.evaluate --workdir runs/imagenet224 --baselines iforest,ocsvm,copod,knn

2 CPU cores: 113 s of training, 120 s of scoring. One picture of each of 1,000 classes, animals normal: AUROC 70.44 (OCSVM
64.91, IForest 64.03).
"""

from ml_collections import ConfigDict

from configs import imagenet224_dit


def get_config() -> ConfigDict:
    config = imagenet224_dit.get_config()
    config.model = {"name": "DiT", "patch_size": 16, "width": 192, "depth": 4, "num_heads": 4}
    config.optimizer.learning_rate = 1e-3
    config.training = {"num_steps": 200, "batch_size": 32}
    config.score.num_draws = 2
    return config
