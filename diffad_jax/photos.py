"""Picture files, read as a run's training data were."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from diffad_jax.data.loading import LOADERS
from diffad_jax.data.pictures import PictureFiles, warn_of_few_levels
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.statistics import Statistics

Files = TypeVar("Files", bound=PictureFiles)


def as_trained(trained: Trained, files: Sequence[Path], kind: type[Files]) -> Files:
    """The files, read as the run's training data were: of its size and channels, fitted as `fit_of` says.

    Raises InputError on a run that has not learnt square pictures of values 0 to 255.
    """
    check_pictures(trained.config, trained.statistics)
    warn_of_few_levels(files)
    shape, config = trained.statistics.transform.shape, trained.config
    return kind(files, shape[0], shape[2], fit_of(config.get("data", {})))


def check_pictures(config: ConfigDict, statistics: Statistics) -> None:
    """Raises InputError on a run that has not learnt square pictures of values 0 to 255, those of picture files."""
    shape = statistics.transform.shape
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
        raise InputError(f"the run has learnt data of shape {shape}, allowed are pictures (size, size, 1 or 3)")
    ends = config.transform.get("low", 0), config.transform.get("high", 255)
    if ends != (0, 255):
        raise InputError(
            f"the run has learnt values from {ends[0]:g} to {ends[1]:g}, those of picture files are 0 to 255"
        )


def fit_of(data: Mapping[str, Any]) -> str:
    """How config.data brings pictures to their size: its fit, or its loader's default; the centre where it has none."""
    loader = LOADERS.get(data.get("name", ""))
    default = inspect.signature(loader).parameters.get("fit") if loader else None
    return str(data.get("fit", default.default if default else "crop"))


class Tolerant(PictureFiles):
    """Picture files; one that cannot be read is black, and its cause is noted in `faults`."""

    def __init__(self, files: Sequence[Path], size: int, channels: int, fit: str) -> None:
        super().__init__(files, size, channels, fit)
        self.faults: dict[Path, str] = {}

    def read(self, file: Path) -> np.ndarray:
        try:
            return super().read(file)
        except InputError as error:
            self.faults[file] = str(error).removeprefix(f"{file}: ")
            return np.zeros(self.shape[1:], self.dtype)
