"""Data readers: every loader returns normal-only training rows and labelled test rows, as raw values.

The loader functions exported here hide the modules of the same name: `from diffad_jax.data import adbench` gives the
function.
"""

from diffad_jax.data.adbench import adbench, adbench_names
from diffad_jax.data.dataset import Dataset, one_class_split
from diffad_jax.data.digits import digits
from diffad_jax.data.folders import class_folders, labelled_folder, mvtec, npz_classes, npz_classes_each, picture_folder
from diffad_jax.data.raw import labelled, mnist_c, pictures

__all__ = [
    "Dataset",
    "adbench",
    "adbench_names",
    "class_folders",
    "digits",
    "labelled",
    "labelled_folder",
    "mnist_c",
    "mvtec",
    "npz_classes",
    "npz_classes_each",
    "one_class_split",
    "picture_folder",
    "pictures",
]
