"""One-class problems of data of several classes: which of them are normal, and what the problem is called."""

import re
from collections.abc import Sequence

import numpy as np

from diffad_jax.errors import InputError, check_choice

Classes = int | str | Sequence[int | str]
SHOWN = 10  # classes in a message


def class_setting(
    normal_class: Classes | None, anomalous_class: Classes | None, class_names: Sequence[str]
) -> tuple[str, list[int]]:
    """Which side is named, and the indices of its classes: ("normal" or "anomalous", sorted ints).

    A class is given by its name, also where that is a number, or by its index into class_names, several as a list or as
    "one, another"; every class not given belongs to the other side. "" gives none, as configs have it for the user to fill.
    Raises InputError unless exactly one side is given, with known classes that leave the other side non-empty.
    """
    normal_class, anomalous_class = (
        None if isinstance(given, str) and not given else given for given in (normal_class, anomalous_class)
    )
    if (normal_class is None) == (anomalous_class is None):
        shown = ", ".join(class_names[:SHOWN]) + (f" and {len(class_names) - SHOWN} more" * (len(class_names) > SHOWN))
        raise InputError(
            f"config.data: give exactly one of normal_class (found {normal_class!r}) and anomalous_class (found "
            f"{anomalous_class!r}); the classes are {shown}"
        )
    side, given = ("anomalous", anomalous_class) if normal_class is None else ("normal", normal_class)
    names = list(class_names)
    indices: set[int] = set()
    if isinstance(given, str) and given not in names and "," in given:  # as flags have a list
        given = tuple(one.strip() for one in given.split(","))
    for one in [given] if isinstance(given, int | np.integer | str) else given or ():
        one = str(one) if str(one) in names else one  # Flags make numbers of names such as 1.
        if isinstance(one, str):
            check_choice(f"{side}_class", one, names)
            indices.add(names.index(one))
        elif isinstance(one, int | np.integer) and 0 <= one < len(names):
            indices.add(int(one))
        else:
            raise InputError(
                f"{side}_class: found {one}, allowed are 0 to {len(names) - 1} and the names of the classes"
            )
    if not 0 < len(indices) < len(names):
        raise InputError(f"{side}_class: {len(indices)} of {len(names)} classes, allowed are 1 to {len(names) - 1}")
    return side, sorted(indices)


def one_class_name(
    source: str, normal_class: Classes | None, anomalous_class: Classes | None, class_names: Sequence[str]
) -> str:
    """The name of a one-class problem, fit for a file: "cifar10_normal_cat", "svhn_anomalous_1_7", "a_normal_9_classes"."""
    side, indices = class_setting(normal_class, anomalous_class, class_names)
    named = "_".join(class_names[k] for k in indices) if len(indices) <= 4 else f"{len(indices)}_classes"
    slug = re.sub(r"[^\w.-]+", "-", named)
    return f"{source}_{side}_{slug}"


def select_classes(
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    normal_class: Classes | None,
    anomalous_class: Classes | None,
    class_names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """The one-class problem in data of several classes with a split of their own: (training rows, test labels).

    train_labels: int [N], test_labels: int [M], indices into class_names. Training rows: int [n], the rows of train that
    belong to normal classes, in order. Test labels: int [M], 0 normal, 1 anomaly: all of test is scored.
    normal_class (ADBench's reading) or anomalous_class (the paper's text): see `class_setting`.
    Raises InputError as `class_setting` does, and on a normal class without training rows or a side without test rows.
    """
    side, indices = class_setting(normal_class, anomalous_class, class_names)
    normal = [k for k in range(len(class_names)) if (k in indices) == (side == "normal")]
    if empty := [class_names[k] for k in normal if not (train_labels == k).any()]:
        raise InputError(f"class {', '.join(empty)}: no training rows, and a normal class needs some")
    labels = (~np.isin(test_labels, normal)).astype(np.int64)
    for value, name in enumerate(("normal", "anomalous")):
        if not (labels == value).any():
            raise InputError(f"{side}_class: no {name} rows among the {len(labels)} test rows")
    return np.flatnonzero(np.isin(train_labels, normal)), labels
