"""Data sets of TensorFlow Datasets (TFDS), prepared on disk in the array_record format and read without TensorFlow.

TFDS takes 0.4 s to import, which commands on other data are spared: it is imported where it is used.
"""

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffad_jax.data.classes import Classes, one_class_name, select_classes
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.pictures import Decoded, read_picture
from diffad_jax.errors import InputError, one_line

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

LABELS_AT_ONCE = 512


def tfds_pictures(
    dataset: str,
    data_dir: str | Path | None = None,
    normal_class: Classes | None = None,
    anomalous_class: Classes | None = None,
    size: int | None = None,
    train: str = "train",
    test: str = "test",
) -> Dataset:
    """One-class problem in a classification set of TFDS: normals of the train split train, all of the test split tests.

    dataset: its name there, such as "cifar10" or "mnist_corrupted/fog".  data_dir: the folder it was prepared in, None for
    the default of TFDS.  normal_class (ADBench's reading) or anomalous_class (the paper's text): see
    `classes.class_setting`.  size: pictures become [size, size] as in `pictures.read_picture`; sets whose pictures vary in
    size need it.  train, test: splits in the syntax of TFDS, such as "train[:10%]"; where the split "test" is missing
    (imagenette) or has no labels (imagenet2012), "validation" takes its place.

    Pictures are uint8 [N, H, W, C], 0..255, C = 1 or 3, decoded when indexed; `groups` names the class of each in test.
    Labels lie inside the records, so that every record is read once here, at about 12,000 a second.
    Raises InputError on a set that is not prepared, with the command that does it, on one that is no set of pictures with
    a class each, on unknown splits and classes, and on damaged files.
    """
    builder = _builder(dataset, data_dir)
    if test == "test" and "validation" in builder.info.splits and _without_labels(builder, test):
        test = "validation"
    training, testing = Split(builder, train), Split(builder, test)
    names = testing.class_names
    # First, for a mistake in the classes must not wait for the labels.
    name = one_class_name(dataset.replace("/", "_"), normal_class, anomalous_class, names)
    test_labels = testing.labels()
    if (unlabelled := int((test_labels < 0).sum())) > 0:
        raise InputError(
            f"{testing}: {unlabelled} of {len(testing)} pictures have no label, choose another split for test"
        )
    rows, labels = select_classes(training.labels(), test_labels, normal_class, anomalous_class, names)
    return Dataset(
        name,
        train=TfdsPictures([training], rows, size),
        test=TfdsPictures([testing], np.arange(len(testing)), size),
        labels=labels,
        groups=np.array(names)[test_labels],
    )


def tfds_corrupted(
    corruptions: str | Sequence[str], data_dir: str | Path | None = None, size: int | None = None
) -> tuple[Dataset, ...]:
    """MNIST-C of TFDS (Mu and Gilmer 2019, arXiv:1906.02337), one Dataset a corruption, all sharing one `train`.

    Clean digits, the configuration "identity", are normal and corrupted ones anomalous: the train split of the clean
    digits trains; their test split and that of the corruption test. `groups` holds "identity" and the corruption.
    data_dir, size, the pictures and what raises: see `tfds_pictures`.
    """
    clean = _builder("mnist_corrupted/identity", data_dir)
    training, normal = Split(clean, "train"), Split(clean, "test")
    train = TfdsPictures([training], np.arange(len(training)), size)
    sets = []
    for corruption in [corruptions] if isinstance(corruptions, str) else corruptions:
        anomalous = Split(_builder(f"mnist_corrupted/{corruption}", data_dir), "test")
        counts = [len(normal), len(anomalous)]
        test = TfdsPictures([normal, anomalous], np.arange(sum(counts)), size)
        labels, groups = np.repeat([0, 1], counts), np.repeat(["identity", corruption], counts)
        sets.append(Dataset(corruption, train, test, labels, groups=groups))
    return tuple(sets)


class Split:
    """The examples of one split, still encoded: pictures with a class each."""

    def __init__(self, builder: "DatasetBuilder", split: str) -> None:
        import tensorflow_datasets as tfds

        self.name = f"{builder.info.full_name} {split}"
        features = builder.info.features
        keys: tuple[str, ...] = builder.info.supervised_keys or ("image", "label")
        try:
            self.picture_key, self.label_key = keys[:2]
            picture, label = features[self.picture_key], features[self.label_key]
        except (KeyError, TypeError, ValueError):
            picture = label = None
        if not isinstance(picture, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
            raise InputError(f"{builder.info.full_name}: allowed are sets of pictures with one class each")
        self.shape: tuple[int | None, int | None, int] = picture.shape
        self.class_names: list[str] = label.names
        try:
            self.examples = builder.as_data_source(split, decoders={self.picture_key: tfds.decode.SkipDecoding()})
        except ValueError as error:
            raise InputError(
                f"{self}: no such split or an empty one, found are {', '.join(builder.info.splits)}"
            ) from error
        except NotImplementedError as error:
            raise InputError(
                f"{builder.data_dir}: prepared as {builder.info.file_format.value}, needed is array_record; "
                f"{_how_to_prepare(builder.info.full_name.rpartition('/')[0], 'ANOTHER_DIR')}"
            ) from error

    def __str__(self) -> str:
        return self.name

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The examples, pictures as the bytes of their files. Raises InputError where the data set's files are damaged."""
        try:
            # For one row, the threads that read many at once take ten times longer than the row.
            return [self.examples[rows[0]]] if len(rows) == 1 else self.examples.__getitems__(rows)
        except (IndexError, RuntimeError) as error:
            raise InputError(f"{self}: cannot be read, prepare it again ({one_line(error)})") from error

    def labels(self) -> np.ndarray:
        """The class of every example, int [N]; -1 for none."""
        starts = range(0, len(self), LABELS_AT_ONCE)
        parts = [self.read(range(start, min(start + LABELS_AT_ONCE, len(self)))) for start in starts]
        return np.array([example[self.label_key] for part in parts for example in part], np.int64)


class TfdsPictures(Decoded[int]):
    """Pictures of the examples `rows` in the list of all `splits`, uint8 [N, H, W, C], each decoded when it is indexed."""

    dtype = np.dtype(np.uint8)

    def __init__(self, splits: Sequence[Split], rows: np.ndarray, size: int | None) -> None:
        *sides, channels = splits[0].shape
        height, width = (size, size) if size is not None else sides
        if height is None or width is None:
            raise InputError(f"{splits[0]}: its pictures vary in size, give `size` to resize all")
        super().__init__(rows.tolist(), (height, width, 1 if channels == 1 else 3))
        self.splits, self.size = splits, size

    def read(self, file: int) -> np.ndarray:
        return read_picture(self._encoded(file), self.shape[3], self.size)

    def bytes_of(self, file: int) -> int:
        return self._encoded(file).getbuffer().nbytes

    def _encoded(self, file: int) -> "_Encoded":
        for split in self.splits:
            if file < len(split):
                break
            file -= len(split)
        [example] = split.read([file])
        return _Encoded(example[split.picture_key], f"{split}: example {file}")


class _Encoded(io.BytesIO):
    """A picture file in memory, with a name for the errors about it."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def _without_labels(builder: "DatasetBuilder", split: str) -> bool:
    return split not in builder.info.splits or bool((Split(builder, f"{split}[:1]").labels() < 0).any())


def _builder(dataset: str, data_dir: str | Path | None) -> "DatasetBuilder":
    """What TFDS knows of a prepared set, from its files alone, so that any version of it will do."""
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    where = None if data_dir is None else str(Path(data_dir).expanduser())
    try:
        return builder_from_files(dataset, data_dir=where)
    except DatasetNotFoundError as error:
        raise InputError(
            f"{dataset}: not prepared in {where or 'the default folder of TFDS'}; {_how_to_prepare(dataset, where)}"
        ) from error
    except Exception as error:  # A damaged description raises the errors of several libraries.
        raise InputError(
            f"{dataset}: cannot be read from {where or 'the default folder of TFDS'} ({one_line(error)})"
        ) from error


def _how_to_prepare(dataset: str, data_dir: str | None) -> str:
    command = ["python", "-m", "experiments.prepare", "--dataset", dataset]
    if data_dir is not None:
        command += ["--data_dir", data_dir]
    return f"run `{shlex.join(command)}`, which needs TensorFlow: pip install 'diffad_jax[prepare]'"
