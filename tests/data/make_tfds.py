"""Writes tests/data/tfds: small stand-ins for data sets of TFDS, prepared as TFDS prepares the real ones.

    pip install -e '.[prepare]'
    python tests/data/make_tfds.py

mnist_corrupted: scikit-learn's digits at 28x28, and the same with noise. imagenet2012: drawings in sizes that vary, some
grey, labelled in `validation` and not in `test`. A file of TFDS's array_record format takes at least 128 KB.
"""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent / "tfds"
SHAPES = ["disk", "ring", "square"]


def digits(start: int, stop: int, noise: float) -> Iterator[dict[str, Any]]:
    bunch = load_digits()
    for row in range(start, stop):
        picture = np.kron(bunch.images[row] * 15, np.ones((3, 3)))
        noisy = np.pad(picture, 2) + noise * np.random.default_rng(row).normal(size=(28, 28))
        yield {"image": noisy.clip(0, 255).round().astype(np.uint8)[..., None], "label": int(bunch.target[row])}


def drawings(start: int, stop: int, labelled: bool = True) -> Iterator[dict[str, Any]]:
    for row in range(start, stop):
        image = Image.new("L" if row % 5 == 0 else "RGB", (30 + row % 7, 24 + row % 4), "white")
        box, shape = (6, 6, 20, 20), row % len(SHAPES)
        draw = ImageDraw.Draw(image)
        (draw.rectangle if shape == 2 else draw.ellipse)(box, fill="black" if shape != 1 else None, outline="black")
        file = io.BytesIO()
        image.save(file, "JPEG")
        file.seek(0)
        yield {"file_name": f"{row}.JPEG", "image": file, "label": shape if labelled else -1}


class StandIn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, features: dict[str, Any], splits: dict[str, Iterator[dict[str, Any]]], **kwargs: Any) -> None:
        self.features, self.splits = features, splits
        super().__init__(data_dir=FOLDER, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A stand-in for tests: tests/data/make_tfds.py",
            features=tfds.features.FeaturesDict(self.features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: enumerate(examples) for split, examples in self.splits.items()}

    def _generate_examples(self) -> Any:
        raise NotImplementedError


def write(name: str, config: str | None, features: dict[str, Any], **splits: Iterator[dict[str, Any]]) -> None:
    builder = type(name, (StandIn,), {"name": name}, skip_registration=True)
    chosen = config and tfds.core.BuilderConfig(name=config, version="1.0.0")
    builder(features, splits, config=chosen).download_and_prepare()


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    grey = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    coloured = {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=SHAPES),
    }
    write("mnist_corrupted", "identity", grey, train=digits(0, 100, 0), test=digits(100, 150, 0))
    write("mnist_corrupted", "shot_noise", grey, test=digits(100, 150, 60))
    test = drawings(45, 50, labelled=False)
    write("imagenet2012", None, coloured, train=drawings(0, 30), validation=drawings(30, 45), test=test)
