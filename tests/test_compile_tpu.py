"""The counts of FLOPs and bytes against programs whose costs are known, and the TPU compiler where libtpu is installed."""

import os
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from processes import command, with_devices

from diffad_jax import plan, settings, sharding
from diffad_jax.errors import InputError
from diffad_jax.training import Batch, make_dispatch
from experiments import hlo
from experiments.flops import flops

# --- FLOPs -----------------------------------------------------------------------------------------------------------


def test_flops_of_a_scan_of_products_and_of_their_gradient() -> None:
    def loss(w: jax.Array, x: jax.Array, unroll: int = 1) -> jax.Array:
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w, unroll=unroll)[0].sum()

    w, x = jnp.ones((3, 4, 4)), jnp.ones((5, 4))
    product = 2 * 5 * 4 * 4
    assert flops(jax.make_jaxpr(loss)(w, x)) == 3 * product
    assert flops(jax.make_jaxpr(loss)(w, x), loops=False) == product
    assert flops(jax.make_jaxpr(partial(loss, unroll=2))(w, x), loops=False) == 2 * product
    assert flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(w, x)) == 9 * product


def test_of_a_choice_the_dearest_branch_counts() -> None:
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops(jax.make_jaxpr(program)(jnp.ones((5, 4)), jnp.ones((4, 4)))) == 2 * (2 * 5 * 4 * 4)


def test_flops_of_a_strided_convolution_and_of_its_gradient() -> None:
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers).sum()

    kernel, x = jnp.ones((3, 3, 6, 7)), jnp.ones((2, 8, 8, 6))
    forward = 2 * (2 * 4 * 4 * 7) * (3 * 3 * 6)
    assert flops(jax.make_jaxpr(loss)(kernel, x)) == forward
    assert flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(kernel, x)) == 3 * forward


# --- bytes -----------------------------------------------------------------------------------------------------------

PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cut (p: f32[4,10], q: s32[]) -> bf16[10] {
  %p = f32[4,10]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  %padded = f32[5,10]{1,0} pad(%p, %zero), padding=0_1x0_0
  %row = f32[1,10]{1,0} dynamic-slice(%padded, %q, %zero), dynamic_slice_sizes={1,10}
  ROOT %flat = bf16[10]{0} convert(%row)
}

%put (p.1: f32[4,10], q.1: s32[], r: f32[10]) -> (f32[4,10]) {
  %p.1 = f32[4,10]{1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %r = f32[10]{0} parameter(2)
  %zero.1 = s32[] constant(0)
  %row.1 = f32[1,10]{1,0} bitcast(%r)
  %written = f32[4,10]{1,0} dynamic-update-slice(%p.1, %row.1, %q.1, %zero.1)
  ROOT %both = (f32[4,10]{1,0}) tuple(%written)
}

%condition (state: (s32[], f32[4,10])) -> pred[] {
  %state = (s32[], f32[4,10]) parameter(0)
  %end = s32[] constant(4)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

%body (state.1: (s32[], f32[4,10])) -> (s32[], f32[4,10]) {
  %state.1 = (s32[], f32[4,10]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %stack = f32[4,10]{1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %near = bf16[10]{0:T(128)S(1)} fusion(%stack, %i.1), kind=kLoop, calls=%cut
  %gathered = bf16[80]{0} all-gather(%near), channel_id=1, replica_groups=[2,8]<=[16], dimensions={0}
  %reduced = f32[10]{0} all-reduce(%near), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  %put.1 = (f32[4,10]{1,0}) fusion(%stack, %i.1, %reduced), kind=kLoop, calls=%put
  %stack.1 = f32[4,10]{1,0} get-tuple-element(%put.1), index=0
  ROOT %next = (s32[], f32[4,10]) tuple(%i.1, %stack.1)
}

ENTRY %main (x: f32[4,10]) -> f32[4,10] {
  %x = f32[4,10]{1,0} parameter(0)
  %start = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1}}
  %done = f32[16]{0} collective-permute-done(%start)
  %first = (s32[], f32[4,10]) tuple(%x, %x)
  %loop = (s32[], f32[4,10]) while(%first), condition=%condition, body=%body
  ROOT %y = f32[4,10]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_communication_in_loops_counts_as_often_as_they_run() -> None:
    assert hlo.collectives(PROGRAM) == {
        "all-gather": (4, 4 * 160, 4 * 160 * 7 / 8),
        "all-reduce": (4, 4 * 40, 4 * 40),
        "collective-permute": (1, 64, 64),
    }


def test_memory_traffic_leaves_out_vector_memory_and_counts_slices_where_arrays_are_cut_or_written_in_place() -> None:
    body = 40 + 4 + 160 + 40  # a row of the stack, its number, two results; what is near costs nothing
    body += 40 + 4 + 40  # a row, read and put into the stack, and its number
    assert hlo.memory_bytes(PROGRAM) == 4 * body + 64


@pytest.mark.parametrize(
    "inside",
    [
        "%all = f32[] custom-call(%p)\n  ROOT %flat = bf16[10]{0} convert(%row)",
        "ROOT %flat = bf16[4,10]{1,0} convert(%p)",
    ],
)
def test_an_array_that_is_read_whole_counts_whole(inside: str) -> None:
    whole = PROGRAM.replace("ROOT %flat = bf16[10]{0} convert(%row)", inside)
    assert hlo.memory_bytes(whole) == hlo.memory_bytes(PROGRAM) + 4 * (160 - 40)


# --- the sharded step ------------------------------------------------------------------------------------------------


def communication() -> tuple[float, dict[str, Any]]:
    """Bytes of a small transformer's parameters, and what its step on 8 CPU devices sends."""
    sharding.MIN_SPLIT = 2**8
    config = tiny.get_config()
    config.mesh = {"fsdp": 8}
    config.model = {"name": "DiT", "width": 64, "depth": 3, "num_heads": 2, "patch_size": 2}
    config.training.batch_size = 512
    _, init, step, training = plan.define(config, (8, 8, 1))
    parallel = settings.parallel_of(config, training)
    state = parallel.put_state(init())
    rows = np.zeros((1, 512, 8, 8, 1), np.float32)
    batch = parallel.put_batches(Batch(rows, np.arange(512)[None]))  # type: ignore[arg-type]
    compiled = make_dispatch(step, 1, parallel.compile).lower(state, batch, jax.random.key(0)).compile()
    return sum(x.nbytes for x in jax.tree.leaves(state.params)), hlo.collectives(compiled.as_text())


def test_a_step_sends_parameters_and_gradients_but_no_activations() -> None:
    size, found = with_devices(8, communication)
    sent = sum(kind.sent for kind in found.values())
    # Every gradient is summed, and every weight that is split is gathered before it is used, forward and backward.
    assert 1.5 * size < sent < 4.5 * size, (sent / size, found)


def refusal_of_pmap() -> str:
    from experiments import compile_tpu  # not above: a process has one flag --config

    config = tiny.get_config()
    config.parallel = "pmap"
    with pytest.raises(InputError) as refused:
        compile_tpu.compile_step(config, (8, 8, 1), jax.devices())
    return str(refused.value)


def test_a_step_by_pmap_is_not_compiled_without_the_chips() -> None:
    assert with_devices(1, refusal_of_pmap) == "config.parallel: found 'pmap', allowed without the chips is 'jit'"


# --- the command -----------------------------------------------------------------------------------------------------


def remedies_of_several() -> tuple[list[str], str, str | None]:
    from configs import imagenet64_unet
    from experiments.compile_tpu import remat_of, remedies  # not above: a process has one flag --config

    config = imagenet64_unet.get_config()
    config.training.update({"batch_size": 192, "accumulate": 6})
    tried = [names for names, _ in remedies(config, 32)]
    config.model = {"name": "MLP"}
    first, _ = next(remedies(config, 32))
    config.model = {"name": "DiT"}
    return tried, first, remat_of(config)


def test_remedies_are_settings_that_a_run_takes() -> None:
    """Recomputing also where the file leaves it at the model's default, and batches that all chips and passes divide."""
    tried, first_without_blocks, default = with_devices(1, remedies_of_several)
    assert tried == [
        "--config.model.remat=blocks",
        "--config.model.remat=blocks --config.mesh.fsdp=8",
        "--config.model.remat=blocks --config.mesh.fsdp=32",
        "--config.model.remat=blocks --config.mesh.fsdp=32 --config.training.batch_size=96",
    ]
    assert (first_without_blocks, default) == ("--config.mesh.fsdp=8", "dots")


def report_of_a_known_step() -> tuple[list[str], tuple[float, float]]:
    from experiments import compile_tpu

    gib = 2**30
    compiled = SimpleNamespace(
        memory_analysis=lambda: SimpleNamespace(
            argument_size_in_bytes=4 * gib,
            output_size_in_bytes=3 * gib,
            alias_size_in_bytes=2 * gib,
            temp_size_in_bytes=6 * gib,
            generated_code_size_in_bytes=gib // 2,
        ),
        cost_analysis=lambda: {"flops": 1e14},
        as_text=lambda: "",
    )
    sent = hlo.Collectives(runs=2, result=1e9, sent=2e11)
    compile_tpu.hlo = SimpleNamespace(memory_bytes=lambda _: 1e12, collectives=lambda _: {"all-reduce": sent})
    chip = compile_tpu.Chip(flops=1e14, memory=16 * gib, bandwidth=1e12, links=1e11)
    step = compile_tpu.Step(compiled, model_flops=4e14, program_flops=6e14, program_flops_once=3e14)
    refused = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.50T of 15.75G hbm. Exceeded by 1.48T."
    return compile_tpu.report(step, chip, 2, 96), compile_tpu._needed_and_there(refused)


def test_the_report_of_a_step_of_known_costs() -> None:
    """Two chips: 3e14 of the program's FLOPs each, of which the model's are 2e14, in 3 s; memory takes 1 s, links 2 s."""
    lines, (needed, there) = with_devices(1, report_of_a_known_step)
    assert lines == [
        "memory: 11.50 of 16 GiB (arguments 4.00, output beyond them 1.00, temporaries 6.00, program 0.50)",
        "arithmetic: 300.00 TFLOP, of which the model's 200.00",
        "memory traffic: 1000.0 GB, estimated",
        "links: 200.00 GB sent",
        "  all-reduce: 2, results of 1.000 GB, 200.000 GB sent",
        "least time: arithmetic 3000.0 ms, memory 1000.0 ms, links 2000.0 ms",
        "roofline: 3000.0 ms a step, bound by arithmetic: 32 rows/s on all chips, MFU at most 67%",
    ]
    assert (needed, there) == (1536, 15.75)


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_one_line_tells_how_to_get_it(tmp_path: Path) -> None:
    ended = command("experiments.compile_tpu", output=tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1) and "libtpu is not installed" in ended.err


@pytest.mark.slow
@pytest.mark.skipif("TPU_PYTHON" not in os.environ, reason="TPU_PYTHON names no Python of an environment with libtpu")
@pytest.mark.parametrize(("batch_size", "code"), [(64, 0), (16384, 1)])
def test_the_tpu_compiler(batch_size: int, code: int) -> None:
    small = (
        "--config=configs/imagenet224_dit.py:S/16",
        "--topology=v5e:2x2",
        f"--config.training.batch_size={batch_size}",
    )
    arguments = [os.environ["TPU_PYTHON"], "-m", "experiments.compile_tpu", *small]
    root = Path(plan.__file__).parents[1]
    ended = subprocess.run(
        arguments, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert ended.returncode == code, ended.stderr
    assert "roofline: " in ended.stdout
    assert ("makes it fit" in ended.stderr) == (code == 1)
