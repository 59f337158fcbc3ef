"""Where arrays live: one mesh of devices with the axes data and fsdp, and one step that runs on all of them.

A batch is split over all devices. Of the training state, arrays of at least MIN_SPLIT elements are split over fsdp along
their largest axis that fsdp divides, and XLA gathers what a layer needs when it needs it (stage 3 of "ZeRO", Rajbhandari et
al. 2020); every other array is whole on every device. In a run of several processes each makes its own rows of a batch.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffad_jax import compiler
from diffad_jax.errors import InputError
from diffad_jax.training import Params, TrainState

AXES = ("data", "fsdp")
MIN_SPLIT = 2**16  # elements


def data_mesh(
    batch_size: int, fsdp: int = 1, devices: Sequence[jax.Device] | None = None, key: str = "config.training.batch_size"
) -> Mesh:
    """Devices [data, fsdp], of all by default: the most that divide batch_size, and all where there are several processes.

    Devices of one process are neighbours along fsdp first, then along data. key: what the size is called in errors.
    Raises InputError where the devices do not fit.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if jax.process_count() > 1 and batch_size % len(devices):
        raise InputError(
            f"{key}: found {batch_size}, allowed are multiples of the {len(devices)} devices of all processes"
        )
    fewest = len(devices) if jax.process_count() > 1 else 1
    fitting = [count for count in range(fewest, len(devices) + 1) if batch_size % count == 0]
    count = max((count for count in fitting if count % fsdp == 0), default=0)
    if not count:
        allowed = ", ".join(map(str, fitting))
        raise InputError(f"config.mesh.fsdp: found {fsdp}, allowed with {batch_size} rows are divisors of {allowed}")
    return Mesh(np.asarray(devices[:count]).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a training state, given as arrays or their shapes."""
    return jax.tree.map(lambda x: NamedSharding(mesh, _by_size(x.shape, mesh.shape["fsdp"])), tree)


def _by_size(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    divisible = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
    if math.prod(shape) < MIN_SPLIT or not divisible:
        return PartitionSpec()
    return PartitionSpec(*[None] * max(divisible, key=lambda axis: shape[axis]), "fsdp")


def shard(tree: Any, mesh: Mesh) -> Any:
    """Puts a training state that every process has in its host's memory on the devices, split by size."""
    return jax.tree.map(_put, tree, shardings(tree, mesh))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array, from the host's memory or from these devices, on every device of the mesh."""
    return jax.tree.map(partial(_put, sharding=NamedSharding(mesh, PartitionSpec())), tree)


def _put(x: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    # device_put would compare the values of all processes over the network.
    return jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index])


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that this process makes."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def split(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Splits arrays along their batch axis over all devices of the mesh; every process gives its own rows."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def gather(tree: Any) -> Any:
    """The whole arrays in the host's memory of every process."""
    return multihost_utils.process_allgather(tree, tiled=True)


def on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of whole arrays, traced in sight of the mesh, over which it splits kernels that XLA cannot split."""

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


# --- a state and its step on many devices ----------------------------------------------------------------------------


class Parallel(NamedTuple):
    """How a function (state, batches, key) -> (state, metrics) runs on many devices; batch leaves are [steps, B, ...].

    shardings: of a state's arrays, given as they are or as their shapes.
    """

    shardings: Callable[[Any], Any]
    put_state: Callable[[Any], Any]
    put_batches: Callable[[Any], Any]
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]


def by_jit(mesh: Mesh) -> Parallel:
    """The function sees whole arrays, and XLA splits the work over the mesh (global view)."""

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        def pinned(state: Any, batches: Any, key: jax.Array) -> tuple[Any, Any]:
            # XLA may choose how results are split, and the next step wants them as they came.
            stay = nn.intercept_methods(partial(_rows_stay, mesh)) if mesh.shape["fsdp"] > 1 else nullcontext()
            with stay:
                state, metrics = on(mesh, function)(state, batches, key)
            return jax.lax.with_sharding_constraint(state, shardings(state, mesh)), metrics

        return compiler.jit(pinned, mesh.devices.flat[0].platform, donate_argnums=0)

    return Parallel(
        partial(shardings, mesh=mesh), partial(shard, mesh=mesh), partial(split, mesh=mesh, axis=1), compile
    )


def _rows_stay(mesh: Mesh, layer: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
    """Calls a layer and keeps its results split by rows; left to choose, XLA moves activations around to split weights."""

    def stay(x: jax.Array) -> jax.Array:
        rows = NamedSharding(mesh, PartitionSpec(AXES))
        return x if x.ndim < 2 or len(x) % mesh.size else jax.lax.with_sharding_constraint(x, rows)

    results = layer(*arguments, **options)
    return jax.tree.map(stay, results) if context.method_name == "__call__" else results


def by_pmap(mesh: Mesh) -> Parallel:
    """The function sees one device's rows, and takes means itself, by `mean_over_devices`; the state is whole on each."""

    def put_batches(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(len(x), len(mesh.local_devices), -1, *x.shape[2:]), tree)

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        devices = list(mesh.devices.flat)
        arguments: dict[str, Any] = {"in_axes": (None, 1, None), "out_axes": None, "donate_argnums": 0}
        parallel = jax.pmap(function, axis_name="data", devices=devices, **arguments)
        if jax.process_count() == 1:
            return parallel

        def compiled(state: Any, batches: Any, key: jax.Array) -> tuple[Any, Any]:
            # A process gets arrays of its own devices back, of which no checkpoint could be made.
            return multihost_utils.host_local_array_to_global_array(
                parallel(state, batches, key), mesh, PartitionSpec()
            )

        return compiled

    def whole(tree: Any) -> Any:
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)

    return Parallel(whole, partial(replicate, mesh=mesh), put_batches, compile)


def make_state(init: Callable[[], TrainState], parallel: Parallel) -> TrainState:
    """The state that the pure `init` makes, before a first step (its average is its parameters), in place on all devices.

    With one device it is made there, whose step may take its memory over. Where there are more the parameters alone are drawn
    on the first, so that their values are those of one device, and go through the host's memory to where they belong; the
    rest of a state, three quarters and more, is made in its place.
    """
    if jax.device_count() == 1:
        return parallel.put_state(init())
    params = parallel.put_state(jax.device_get(jax.jit(lambda: init().params)()))

    def around(params: Params) -> TrainState:
        return init()._replace(params=params, ema=jax.tree.map(jnp.copy, params))

    return jax.jit(around, out_shardings=parallel.shardings(jax.eval_shape(init)))(params)


def mean_over_devices(tree: Any) -> Any:
    """The mean of what each device found, inside a function compiled by `by_pmap`."""
    return jax.lax.pmean(tree, "data")
