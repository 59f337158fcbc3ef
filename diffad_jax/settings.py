"""Sections of a config that hold settings: config.training, scoring, pipeline, mesh and parallel, checked."""

from typing import NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffad_jax.build import call
from diffad_jax.calibration import COMBINATIONS
from diffad_jax.data.pipeline import Pipeline
from diffad_jax.errors import InputError, check_choice
from diffad_jax.evaluation import MEMORY
from diffad_jax.sharding import Parallel, by_jit, by_pmap, data_mesh
from diffad_jax.training import Training


class Scoring(NamedTuple):
    """config.scoring: how scores become one number, and what reports show.

    batch_size: data scored at once. calibration_rows: training normals that the calibration, or the memory, and the threshold
    are fitted on; where config.training.validation_rows holds some out, it is those.
    combination: "standardised_mean", "typicality", "fisher" or "nearest", see `calibration`, or "memory", see `memory`.
    "fisher" and "nearest" keep the normals with the run, shrunk as `nearness` compares them and up to 64 MiB.
    smoothing: standard deviation in pixels of the Gaussian that smooths heat maps. picture_time, picture_steps: from which
    time, and in how many steps, the reconstructions of a report are made.
    """

    batch_size: int = 256
    calibration_rows: int = 256
    combination: str = "standardised_mean"
    smoothing: float = 0.0
    picture_time: float = 0.5
    picture_steps: int = 10


class MeshSize(NamedTuple):
    """config.mesh. fsdp: devices that a training state is split over."""

    fsdp: int = 1


def training_of(config: ConfigDict) -> Training:
    """config.training; raises InputError, naming the key, on what it may not hold."""
    training: Training = call("training", Training, config.training)
    if training.keep == "best" and not training.validation_rows:
        raise InputError("config.training.keep: 'best' needs config.training.validation_rows, found 0")
    if training.validation_rows == 1 or (training.validation_rows > 1 and training.validation_rows % 1):
        raise InputError(
            f"config.training.validation_rows: found {training.validation_rows}, allowed are whole numbers from 2, shares "
            "below 1, and 0"
        )
    if training.batch_size % training.accumulate:
        raise InputError(
            f"config.training.accumulate: found {training.accumulate}, which does not divide batch_size {training.batch_size}"
        )
    return training


def scoring_of(config: ConfigDict) -> Scoring:
    """config.scoring; raises InputError, naming the key, on what it may not hold."""
    scoring: Scoring = call("scoring", Scoring, config.scoring)
    _mesh(scoring.batch_size, key="config.scoring.batch_size")  # raises where the processes cannot share it
    check_choice("config.scoring.combination", scoring.combination, (*COMBINATIONS, MEMORY))
    return scoring


def pipeline_of(config: ConfigDict, shape: tuple[int, ...]) -> Pipeline:
    """config.pipeline, or its defaults; raises InputError on what it may not hold and on what one datum's shape forbids."""
    pipeline: Pipeline = call("pipeline", Pipeline, config.get("pipeline", {}))
    if (pipeline.flip or pipeline.crop) and len(shape) != 3:
        raise InputError(f"config.pipeline: flip and crop need pictures [H, W, C], found data of shape {shape}")
    if pipeline.crop > min(shape[:2]):
        raise InputError(
            f"config.pipeline.crop: found {pipeline.crop}, allowed is up to the {min(shape[:2])} pixels there are"
        )
    return pipeline


def fsdp_of(config: ConfigDict) -> int:
    """config.mesh.fsdp; raises InputError on anything else in config.mesh."""
    size: MeshSize = call("mesh", MeshSize, config.get("mesh", {}))
    return size.fsdp


def _mesh(batch_size: int, fsdp: int = 1, key: str = "config.training.batch_size") -> Mesh:
    """`data_mesh`, with a warning where it leaves devices idle."""
    mesh = data_mesh(batch_size, fsdp, key=key)
    if mesh.size < (there := jax.device_count()):
        logging.warning(
            "%s: %d rows are split over %d of %d devices, multiples of %d over all",
            key,
            batch_size,
            mesh.size,
            there,
            there,
        )
    return mesh


def parallel_of(config: ConfigDict, training: Training) -> Parallel:
    """How config.parallel, "jit" or "pmap", and config.mesh run the step; raises InputError where they cannot."""
    fsdp = fsdp_of(config)
    if config.get("parallel", "jit") == "jit":
        return by_jit(_mesh(training.batch_size, fsdp))
    if fsdp > 1:
        raise InputError(f"config.mesh.fsdp: found {fsdp}, allowed with config.parallel 'pmap' is 1")
    mesh = _mesh(training.batch_size)
    if training.batch_size // mesh.size % training.accumulate:
        raise InputError(
            f"config.training.accumulate: found {training.accumulate}, allowed with config.parallel 'pmap' are divisors of "
            f"the {training.batch_size // mesh.size} rows of each of {mesh.size} devices"
        )
    return by_pmap(mesh)
