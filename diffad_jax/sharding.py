"""Where arrays live: a mesh of all devices, parameters on each, batches split between them."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(batch_size: int) -> Mesh:
    """A one-axis mesh, "data", over as many devices as divide batch_size evenly."""
    devices = jax.devices()
    count = math.gcd(batch_size, len(devices))
    return Mesh(np.asarray(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Splits every array along its batch axis over the devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))
