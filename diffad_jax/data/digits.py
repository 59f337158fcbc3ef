"""The 8x8 handwritten digits that ship with scikit-learn: real pictures without a download."""

from collections.abc import Sequence

import numpy as np

from diffad_jax.data.dataset import Dataset, one_class_split
from diffad_jax.errors import InputError


def digits(
    anomalous_class: int | Sequence[int] | None = None, normal_class: int | Sequence[int] | None = None
) -> Dataset:
    """One-class problem on the 1,797 digits of scikit-learn; every digit not named belongs to the other side.

    Pictures are float32 [N, 8, 8, 1] in 0..16. The first half of the normals in file order trains.
    Raises InputError unless exactly one argument is given, with digits 0..9 that leave both sides non-empty.
    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), its test part.
    """
    if (anomalous_class is None) == (normal_class is None):
        raise InputError(
            f"digits: give exactly one of anomalous_class (found {anomalous_class}) "
            f"and normal_class (found {normal_class})"
        )
    key, given = ("normal_class", normal_class) if anomalous_class is None else ("anomalous_class", anomalous_class)
    classes = sorted(set(np.asarray(given).ravel().tolist()))
    if not 0 < len(classes) < 10 or not set(classes) <= set(range(10)):
        raise InputError(f"{key}: found {given}, allowed are one to nine different digits of 0..9")
    from sklearn.datasets import load_digits  # here, because the import takes longer than the reading

    bunch = load_digits()
    named = np.isin(bunch.target, classes)
    label = named if key == "anomalous_class" else ~named
    name = f"digits_{key.split('_')[0]}_{''.join(map(str, classes))}"
    return one_class_split(bunch.images, label, name)
