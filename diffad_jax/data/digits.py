"""The 8x8 handwritten digits that ship with scikit-learn: real pictures without a download."""

from collections.abc import Sequence

import numpy as np

from diffad_jax.data.classes import Classes, class_setting
from diffad_jax.data.dataset import Dataset, one_class_split


def digits(anomalous_class: Classes | None = None, normal_class: Classes | None = None) -> Dataset:
    """One-class problem on the 1,797 digits of scikit-learn; every digit not named belongs to the other side.

    Pictures are float32 [N, 8, 8, 1] in 0..16. The first half of the normals in file order trains.
    Raises InputError as `class_setting`.
    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), its test part.
    """
    side, classes = class_setting(normal_class, anomalous_class, list(map(str, range(10))))
    from sklearn.datasets import load_digits  # here, because the import takes longer than the reading

    bunch = load_digits()
    named = np.isin(bunch.target, classes)
    name = f"digits_{side}_{''.join(map(str, classes))}"
    return one_class_split(bunch.images, named if side == "anomalous" else ~named, name)


def digits_each(anomalous_classes: Sequence[int] = tuple(range(10))) -> tuple[Dataset, ...]:
    """The digits problem with each of the classes in turn as the anomaly."""
    return tuple(digits(anomalous_class=c) for c in anomalous_classes)
