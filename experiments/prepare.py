"""Downloads a data set of TensorFlow Datasets and prepares it for reading without TensorFlow.

python -m experiments.prepare --dataset cifar10 [--data_dir DIR]

The only command that needs TensorFlow: pip install 'diffad_jax[prepare]'. A set that is there already is left alone.
"""

import importlib.util

import tensorflow_datasets as tfds
from absl import flags

from diffad_jax.errors import InputError, RunFailed, one_line
from experiments import cli

DATASET = flags.DEFINE_string("dataset", None, "Name in TFDS, as cifar10 or mnist_corrupted/fog.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared sets; by default that of TFDS.")
CATALOG = "https://www.tensorflow.org/datasets/catalog"
FORMAT = "array_record"


def main(_: list[str]) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("preparing a data set needs TensorFlow: pip install 'diffad_jax[prepare]'")
    try:
        builder = tfds.builder(DATASET.value, data_dir=DATA_DIR.value)
    except ValueError as error:
        raise InputError(
            f"--dataset: found {DATASET.value!r}, allowed are the sets and configurations of {CATALOG}"
        ) from error
    try:
        builder.download_and_prepare(file_format=FORMAT)
    except Exception as error:  # Servers, disks and archives fail in many ways; what was half done, TFDS removes.
        raise RunFailed(f"{DATASET.value}: not prepared ({one_line(error)})") from error
    if (found := builder.info.file_format.value) != FORMAT:
        raise InputError(f"{builder.data_dir}: was prepared as {found}, needed is {FORMAT}: choose another --data_dir")
    print(f"{builder.info.full_name}: prepared in {builder.data_dir}")


if __name__ == "__main__":
    cli.run(main)
