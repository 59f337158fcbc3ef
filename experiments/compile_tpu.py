"""Compiles the training step of a config for a TPU slice, without a TPU: what it needs of each chip and how fast it could be.

python -m experiments.compile_tpu --config configs/imagenet224_dit.py:XL/16 --topology v5e:16x16 [--config.mesh.fsdp=16]

Needs the extra `tpu`, in an environment of its own: where libtpu is installed, a plain `import jax` looks for a TPU. A step
that does not fit is tried again with more recomputing, more sharding and fewer rows, and exits with code 1. The figures are
the compiler's, and bounds that follow from them, not measurements.
"""

import math
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffad_jax import plan, sharding
from diffad_jax.assembly import MODELS
from diffad_jax.errors import InputError, RunFailed, check_choice, first_line
from diffad_jax.settings import fsdp_of
from diffad_jax.training import Batch, make_dispatch
from experiments import cli, hlo
from experiments.flops import flops


class Chip(NamedTuple):
    """Bytes of memory, bfloat16 FLOP/s, bytes/s of the memory, and bytes/s that its links to other chips send together."""

    memory: float
    flops: float
    bandwidth: float
    links: float


# Google Cloud TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e". Where they give the bandwidth between
# chips in both directions, half of it is what a chip sends.
GIB = 2**30
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9),
}

CONFIG = cli.config_flag("configs/imagenet224_dit.py:B/16")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "Kind of chip and shape of the slice, as v5e:16x16 or v5p:4x4x4.")
SHAPE = flags.DEFINE_list("shape", [], "Shape of one datum; by default that of pictures of config.data.size in colour.")


class Missing(Exception):
    """The step needs more memory than a chip has, by so many GiB."""


class Step(NamedTuple):
    """A compiled step: the program of one chip, and FLOPs of the whole batch as `flops.flops` counts them."""

    compiled: Any
    model_flops: float
    """Of the mathematics: three times the loss alone, since each product has two in its gradient."""
    program_flops: float
    program_flops_once: float
    """With every loop counted once, as XLA counts."""


def devices_of(topology: str) -> list[jax.Device]:
    """The chips of a slice; raises InputError where its name or the compiler is not known here."""
    if find_spec("libtpu") is None:
        raise InputError("libtpu is not installed; make an environment of its own with pip install '.[tpu]'")
    kind = topology.partition(":")[0]
    check_choice("--topology", kind, CHIPS)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # libtpu raises several kinds.
        raise InputError(f"--topology: found {topology!r}, which libtpu refuses ({first_line(error)})") from error


def compile_step(config: ConfigDict, shape: tuple[int, ...], devices: list[jax.Device]) -> Step:
    """Compiles the step of a config for these chips and data of a shape.

    Raises Missing where it does not fit, and InputError on config.parallel "pmap", which runs only on devices that are there.
    """
    if (parallel := config.get("parallel", "jit")) != "jit":
        raise InputError(f"config.parallel: found {parallel!r}, allowed without the chips is 'jit'")
    system, init, step, training = plan.define(config, shape)
    mesh = sharding.data_mesh(training.batch_size, fsdp_of(config), devices)
    if mesh.size < len(devices):
        raise InputError(
            f"config.training.batch_size: found {training.batch_size}, allowed are multiples of the {len(devices)} chips"
        )

    def placed(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, where)

    state, key = jax.eval_shape(init), jax.eval_shape(lambda: jax.random.key(0))
    rows = jax.ShapeDtypeStruct((training.batch_size, *system.shape), jnp.float32)
    batch: Any = Batch(rows, jax.ShapeDtypeStruct((training.batch_size,), jnp.int32))  # type: ignore[arg-type]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), training.batch_size))
    loss = jax.make_jaxpr(system.loss)(state.params, rows, jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32), keys)
    program = jax.make_jaxpr(step)(state, batch, key)
    counted = (3 * flops(loss), flops(program), flops(program, loops=False))

    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
    split = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))
    lowered = make_dispatch(step, 1, sharding.by_jit(mesh).compile).lower(
        placed(state, sharding.shardings(state, mesh)),
        placed(batches, jax.tree.map(lambda _: split, batches)),
        placed(key, NamedSharding(mesh, PartitionSpec())),
    )
    try:
        return Step(lowered.compile(), *counted)
    except jax.errors.JaxRuntimeError as error:
        if "Ran out of memory" not in str(error):
            raise
        needed, there = _needed_and_there(str(error))
        raise Missing(f"{needed - there:.2f}") from error


def _needed_and_there(message: str) -> tuple[float, float]:
    """The GiB that the compiler says a program needs and a chip has."""
    units = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
    sizes = [float(size) * units[unit] for size, unit in re.findall(r"([\d.]+)([KMGT])\b", message)]
    return sizes[0], sizes[1]


def memory(compiled: Any) -> dict[str, float]:
    """Bytes of a chip's memory by use. What the step gives back in place of its arguments is counted there."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "output beyond them": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }


def report(step: Step, chip: Chip, count: int, batch_size: int) -> list[str]:
    """The lines about a step that fits."""
    uses = memory(step.compiled)
    text = step.compiled.as_text()
    # XLA counts every loop once, those too into which it cuts a product. The trace tells how often the program's own run,
    # and cannot tell what XLA lets several chips compute alike: at least the larger of the two is done.
    by_xla = step.compiled.cost_analysis()["flops"] * step.program_flops / step.program_flops_once
    flops = max(by_xla, step.program_flops / count)
    moved = hlo.memory_bytes(text)
    kinds = hlo.collectives(text)
    sent = sum(kind.sent for kind in kinds.values())
    times = {"arithmetic": flops / chip.flops, "memory": moved / chip.bandwidth, "links": sent / chip.links}
    bound = max(times, key=lambda name: times[name])
    mfu = step.model_flops / count / chip.flops / times[bound]
    return [
        f"memory: {sum(uses.values()) / GIB:.2f} of {chip.memory / GIB:.0f} GiB ("
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in uses.items())
        + ")",
        f"arithmetic: {flops / 1e12:.2f} TFLOP, of which the model's {step.model_flops / count / 1e12:.2f}",
        f"memory traffic: {moved / 1e9:.1f} GB, estimated",
        f"links: {sent / 1e9:.2f} GB sent",
        *(
            f"  {name}: {kind.runs:.0f}, results of {kind.result / 1e9:.3f} GB, {kind.sent / 1e9:.3f} GB sent"
            for name, kind in sorted(kinds.items())
        ),
        "least time: " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items()),
        f"roofline: {1e3 * times[bound]:.1f} ms a step, bound by {bound}: {batch_size / times[bound]:,.0f} rows/s on all "
        f"chips, MFU at most {mfu:.0%}",
    ]


def remat_of(config: ConfigDict) -> str | None:
    """config.model.remat or the model's default; None where it has no such argument."""
    default = getattr(MODELS.get(config.model.name), "remat", None)
    found: str | None = config.model.get("remat", default)
    return found


def remedies(config: ConfigDict, chips: int) -> Iterator[tuple[str, ConfigDict]]:
    """Changes that take less memory, the cheapest first."""
    changed = config.copy_and_resolve_references()
    changed.unlock()
    names = []
    if remat_of(config) in ("none", "dots"):
        changed.model.remat = "blocks"
        names.append("--config.model.remat=blocks")
        yield " ".join(names), changed
    fsdp = fsdp_of(config)
    for wanted in (8, chips):
        if fsdp < wanted <= chips and chips % wanted == 0:
            fsdp = wanted
            changed.mesh = {"fsdp": wanted}
            yield " ".join([*names, f"--config.mesh.fsdp={wanted}"]), changed
    names += [f"--config.mesh.fsdp={fsdp}"]
    least = math.lcm(chips, changed.training.get("accumulate", 1))
    while changed.training.batch_size % (2 * least) == 0:
        changed.training.batch_size //= 2
        yield " ".join([*names, f"--config.training.batch_size={changed.training.batch_size}"]), changed


def main(_: list[str]) -> None:
    # Before JAX looks for devices: the compiler needs none, there is no metadata server to ask, and no TPU to be alone on.
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    config, devices = CONFIG.value, devices_of(TOPOLOGY.value)
    size = config.get("data", {}).get("size")
    if not SHAPE.value and size is None:
        raise InputError("--shape: found none, and the config has no config.data.size")
    shape = tuple(cli.counts("shape", SHAPE.value)) if SHAPE.value else (size, size, 3)
    chip = CHIPS[TOPOLOGY.value.partition(":")[0]]
    fsdp = fsdp_of(config)
    batch_size = config.training.batch_size
    print(
        f"{config.model.name} {config.model.get('size', '')} on {shape}, {batch_size} rows a step, {len(devices)} chips "
        f"{TOPOLOGY.value}, fsdp {fsdp}, remat {remat_of(config)}; all figures per chip and step"
    )
    try:
        print("\n".join(report(compile_step(config, shape, devices), chip, len(devices), batch_size)))
        return
    except Missing as missing:
        print(f"does not fit: {missing} GiB more are needed than a chip of {chip.memory / GIB:.0f} GiB has")
    for names, changed in remedies(config, len(devices)):
        try:
            step = compile_step(changed, shape, devices)
        except Missing as missing:
            print(f"  {names}: still {missing} GiB too much")
            continue
        print(f"  {names}: fits")
        print("\n".join(report(step, chip, len(devices), changed.training.batch_size)))
        raise RunFailed(f"does not fit as asked; {names} makes it fit")
    raise RunFailed("does not fit, nor with any remedy tried; take more chips or chips of more memory")


if __name__ == "__main__":
    cli.run(main)
