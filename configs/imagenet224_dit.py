"""DiT on ImageNet's pictures at 224x224, in pixel space: some classes are normal, all others anomalies.

    python -m experiments.train --config configs/imagenet224_dit.py:B/16 --config.data.path=FOLDER \
        --config.data.normal_class=CLASS --workdir runs/imagenet224
    python -m experiments.evaluate --workdir runs/imagenet224

FOLDER holds train/<class> and val/<class>, or <class> alone, half of whose normals then train. The argument is the size of
the network and the side of its patches: S/16, B/16 (the default), L/16 or XL/16, of 33, 131, 458 and 675 million parameters.

Hardware: an accelerator with bfloat16; with few steps S/16 trains on a CPU. One H200 trains B/16 on 3,743 pictures/s and
XL/16 on 828, in 69 GiB, given `--config.model.remat=none --config.model.unroll=12` and 28 (docs/performance.md). Result: not
run.
"""

from ml_collections import ConfigDict

from configs import _pictures


def get_config(network: str = "B/16") -> ConfigDict:
    size, _, patch_size = network.partition("/")
    if not patch_size.isdecimal():
        raise ValueError(f"found {network!r}, allowed are S/16, B/16, L/16 and XL/16, or patches of another side")
    config = _pictures.get_config()
    config.data = {"name": "class_folders", "path": "data/imagenet", "size": 224, "normal_class": "", "seed": 1}
    config.pipeline.flip = True
    config.model = {
        "name": "DiT",
        "size": size,
        "patch_size": int(patch_size),
        "dtype": "bfloat16",
        "remat": "blocks" if size in ("L", "XL") else "dots",
    }
    config.optimizer = {"learning_rate": 2e-4}
    config.training = {"num_steps": 100_000, "batch_size": 256, "checkpoint_every": 5000}
    config.scoring.update({"batch_size": 32, "combination": "memory", "smoothing": 4.0})
    return config
