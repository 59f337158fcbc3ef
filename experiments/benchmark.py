"""Measures the training step and the scoring of configs, beside the device's matrix products and the same network in PyTorch.

python -m experiments.benchmark --suite cpu [--out benchmark.json]
XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 python -m experiments.benchmark --suite gpu
python -m experiments.benchmark --config configs/digits.py --shape 8,8,1 [--profile DIR]

All figures of a line come from one process, which takes its measurements in turn, so that other work on the machine slows
all of them. FLOPs of a training step are those of the products and convolutions of the forward pass, times three. "of peak"
is their rate over that of a product at the model's shapes, "mfu" over what the card's maker states for bfloat16.
"score_of_train" is the rate of scoring's forward passes over that of training. In the suite of the CPU a PyTorch column
appears where PyTorch is installed (`pip install .[benchmark]`); its loop is `experiments.torch_twins.trainer`. "loop" is
`diffad_jax.loop.fit` against the bare compiled step, dispatched without waiting; it reads pictures of 32 pixels and more from
JPEG files, what is smaller and vectors from memory. "data_wait" is the part of its time in which it waits for data. "first
step" is the time from the start of a process with a warm compilation cache to the end of its first training step. A profile
opens in Perfetto or XProf.
"""

import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from configs import benchmark as networks
from diffad_jax import compiler, plan
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Rows
from diffad_jax.data.pictures import PictureFiles
from diffad_jax.errors import InputError, check_choice
from diffad_jax.evaluation import make_levels
from diffad_jax.files import save_json
from diffad_jax.loop import Fitted, fit
from diffad_jax.models import MLP, DiT, UNet
from diffad_jax.settings import parallel_of, pipeline_of, scoring_of
from diffad_jax.sharding import make_state
from diffad_jax.table import grid
from diffad_jax.training import Batch, Training, make_dispatch
from experiments import cli
from experiments.flops import flops

CONFIG = cli.config_flag("configs/digits.py")
SHAPE = flags.DEFINE_list("shape", ["8", "8", "1"], "Shape of one datum: H,W,C for pictures or D for vectors.")
SUITE = flags.DEFINE_enum(
    "suite", None, list(networks.SUITES), "Measures these networks of configs/benchmark.py instead of one config."
)
OUT = flags.DEFINE_string("out", None, "File for the figures as JSON.")
PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of three training steps of each config.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each figure; the median is told.", lower_bound=1)
FIRST_STEP = flags.DEFINE_string("first_step", None, "Ends after one step of this network of the suite.")

# FLOP/s of dense bfloat16 products by JAX's name of the card. Source: NVIDIA's data sheets of A100, H100 SXM and H200 SXM.
PEAKS = {"NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989.5e12, "NVIDIA H200": 989.5e12}
FILES_FROM = 32  # pixels
LOOP_SECONDS = 10.0  # of training by the loop, two fifths of which are measured


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each function, called in turn.

    Each is called twice and its second call counts: the first also pays for the memory that another function gave back to the
    kernel.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            jax.block_until_ready(function())
            started = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(found)) for name, found in times.items()}


def product_shape(model: Any, shape: tuple[int, ...], batch_size: int) -> tuple[int, int, int]:
    """Rows, inner and outer length of the largest kind of product of a network."""
    if isinstance(model, DiT):
        width, *_ = model.dimensions
        sides = shape[:2] if len(shape) == 3 else shape
        return batch_size * math.prod(-(-side // model.patch_size) for side in sides), width, 4 * width
    if isinstance(model, UNet):
        channels = model.channels * max(model.channel_multipliers)
        return batch_size * math.prod(shape[:2]) // 4, 9 * channels, channels
    return batch_size, model.width, model.width


def measure(config: ConfigDict, shape: tuple[int, ...], name: str) -> dict[str, Any]:
    """The figures of one config for data of one shape; training sees patches of them where the config says so.

    name: of its trace, where one is asked for.
    """
    system, init, step, training = plan.define(config, shape)
    batch_size, count = training.batch_size, training.steps_per_dispatch
    parallel = parallel_of(config, training)
    state, key = make_state(init, parallel), jax.random.key(0)
    dispatch = make_dispatch(step, count, parallel.compile)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((2 * batch_size, *system.shape), np.float32)
    chosen, place = rng.integers(len(data), size=(count, batch_size)), np.tile(np.arange(batch_size), (count, 1))
    batches = parallel.put_batches(Batch(data[chosen], place))  # type: ignore[arg-type]

    def train() -> Any:
        nonlocal state
        state, metrics = dispatch(state, batches, key)
        return metrics

    on_accelerator = jax.default_backend() != "cpu"
    started = time.perf_counter()
    jax.block_until_ready(train())
    compile_seconds = time.perf_counter() - started
    if FIRST_STEP.value:
        return {}

    params = jax.tree.map(jnp.copy, state.params)  # of which the next step takes the memory
    model: Any = system.model
    x, t = jnp.zeros((batch_size, *system.shape)), jnp.ones(batch_size)
    step_flops = 3 * flops(jax.make_jaxpr(model.apply)(params, x, t))
    size = rows, inner, outer = product_shape(model, system.shape, batch_size)
    left, right = (jax.random.normal(key, factor, model.dtype) for factor in (size[:2], size[1:]))
    matmul = compiler.jit(jnp.matmul)

    def products() -> Any:
        # An accelerator is not asked to wait for Python between two of them.
        found = [matmul(left, right) if on_accelerator else matmul(left, right).block_until_ready() for _ in range(10)]
        return found[-1]

    scoring = scoring_of(config)
    score = make_levels(system, params, 0, scoring.batch_size)
    unscored = rng.standard_normal((scoring.batch_size * (8 if on_accelerator else 1), *shape), np.float32)
    functions: dict[str, Callable[[], Any]] = {
        "train": train,
        "matmul": products,
        "score": lambda: score(unscored),
    }
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    if torch := importlib.util.find_spec("torch") is not None and SUITE.value == "cpu":
        from experiments import torch_twins

        twin = torch_twins.twin(model, system.shape)
        assert sum(p.numel() for p in twin.parameters()) == parameters
        # The plain loop for the smallest network, as people write it; PyTorch's fused optimiser for the others.
        torch_step = torch_twins.trainer(twin, data, batch_size, plain=isinstance(model, MLP))
        functions["torch"] = lambda: [torch_step().item() for _ in range(count)]
    seconds = in_turn(functions, ROUNDS.value)
    if PROFILE.value:
        with jax.profiler.trace(str(Path(PROFILE.value) / name)):
            jax.block_until_ready([train() for _ in range(3)])

    rate, peak = step_flops * count / seconds["train"], 20 * math.prod(size) / seconds["matmul"]
    train_rows, score_rows = batch_size * count / seconds["train"], len(unscored) / seconds["score"]
    device = jax.devices()[0]
    figures = {
        "model": config.model.name,
        "parameters": parameters,
        "batch_size": batch_size,
        "compile_seconds": compile_seconds,
        "matmul_shape": f"{rows} x {inner} x {outer}",
        "matmul_gflops": peak / 1e9,
        "train_gflops": rate / 1e9,
        "train_of_peak": rate / peak,
        "train_steps_per_second": count / seconds["train"],
        "train_examples_per_second": train_rows,
        "score_examples_per_second": score_rows,
        "network_evaluations_per_datum": system.score.evaluations,
        "score_of_train": score_rows * system.score.evaluations / (3 * train_rows),
    }
    if device.device_kind in PEAKS and model.dtype == "bfloat16":
        figures["mfu"] = rate / (PEAKS[device.device_kind] * len(jax.devices()))
    if memory := device.memory_stats():
        figures["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
    with tempfile.TemporaryDirectory() as folder:
        known = training_rows(Path(folder), shape, 2 * batch_size)
        loop = partial(fit, step, init, known, seed=0, pipeline=pipeline_of(config, shape), parallel=parallel)
        figures |= loop_figures(loop, training, train, seconds["train"])
    if torch:
        figures["torch_steps_per_second"] = count / seconds["torch"]
        figures["times_torch"] = seconds["torch"] / seconds["train"]
    return figures


def training_rows(folder: Path, shape: tuple[int, ...], count: int) -> Rows:
    """Random data as runs read them: pictures of FILES_FROM pixels and more from JPEG files, all else from memory."""
    rng = np.random.default_rng(0)
    if len(shape) != 3 or shape[0] != shape[1] or shape[0] < FILES_FROM or shape[2] not in (1, 3):
        return rng.standard_normal((count, *shape), np.float32)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for file in files:
        # Every fourth pixel by chance: about as much to decode as a photo.
        coarse = rng.integers(0, 256, (shape[0] // 4, shape[1] // 4, shape[2]), np.uint8)
        Image.fromarray(coarse.squeeze()).resize(shape[:2], Image.Resampling.BICUBIC).save(file)
    pictures = PictureFiles(files, shape[0], shape[2], "stretch")
    return transforms.fit("range", pictures, low=0, high=255).view(pictures)


def loop_figures(
    loop: Callable[..., Fitted], training: Training, train: Callable[[], Any], seconds: float
) -> dict[str, float]:
    """The training loop, with its reading ahead and log lines, against the bare dispatch `train`, which takes `seconds`.

    The bare dispatch is measured before and after the loop for as long as the loop, since a machine's speed drifts. Nothing
    waits for its results but for the last.
    """
    count = training.steps_per_dispatch
    dispatches = math.ceil(LOOP_SECONDS / 5 / seconds)

    def bare() -> float:
        jax.block_until_ready(train())
        started = time.perf_counter()
        for _ in range(2 * dispatches):
            metrics = train()
        jax.block_until_ready(metrics)
        return 2 * dispatches * count / (time.perf_counter() - started)

    before = bare()
    # Of five log lines the first holds the compilation, the second the imports for writing it, the last the checkpoint.
    num_steps = 5 * dispatches * count
    with tempfile.TemporaryDirectory() as workdir:
        loop(workdir, training._replace(num_steps=num_steps, log_every=num_steps // 5, checkpoint_every=num_steps))
        lines = [json.loads(line) for line in (Path(workdir) / "log.jsonl").read_text().splitlines()][2:4]
    rate = float(np.mean([line["steps_per_second"] for line in lines]))
    return {
        "loop_steps_per_second": rate,
        "loop_of_bare": 2 * rate / (before + bare()),
        "data_wait": float(np.mean([line["data_wait"] for line in lines])),
    }


def first_step(name: str) -> float:
    """Seconds of a new process up to the end of its first step, with every program in the cache."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "experiments.benchmark", f"--first_step={name}"], check=True)
    return time.perf_counter() - started


def machine() -> dict[str, str]:
    """What the figures were measured on: the devices, the processor and the versions of what computes."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)  # of the first processor
    known = {key.strip(): value.strip() for key, value in known.items()}
    told = [known.get("model name", platform.machine())]
    told += [f"{key} {known[key]}" for key in ("cpu family", "model") if key in known]
    told += [f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"]
    versions = [f"{name} {version(name)}" for name in ("jax", "torch") if importlib.util.find_spec(name)]
    return {
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "processor": ", ".join(told),
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each figure, a column for each network."""

    def shown(value: Any) -> str:
        return f"{value:,.3f}" if isinstance(value, float) else str(value)

    names = dict.fromkeys(figure for figures in found.values() for figure in figures)
    lines = [[name, *(shown(figures.get(name, "")) for figures in found.values())] for name in names]
    return grid(["", *found], lines)


def main(_: list[str]) -> None:
    if (name := FIRST_STEP.value) is not None:
        check_choice("--first_step", name, networks.MODELS)
        measure(networks.get_config(name), networks.SHAPES[name], name)
        return
    cli.check_file("out", OUT.value)
    if SUITE.value == "gpu" and jax.default_backend() == "cpu":
        raise InputError("--suite: found 'gpu', but JAX sees no accelerator; allowed here is 'cpu'")
    about = {"command": " ".join(["python -m experiments.benchmark", *sys.argv[1:]]), **machine()}
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    found: dict[str, dict[str, Any]] = {}
    if SUITE.value:
        for name in networks.SUITES[SUITE.value]:
            found[name] = measure(networks.get_config(name), networks.SHAPES[name], name)
            if SUITE.value == "cpu":
                found[name]["first_step_seconds"] = first_step(name)
            print(f"\n{table({name: found[name]})}", flush=True)  # now: the next takes minutes
    else:
        name = CONFIG.value.model.name.lower()
        found[name] = measure(CONFIG.value, tuple(cli.counts("shape", SHAPE.value)), name)
    if len(found) > 1 or not SUITE.value:
        print(f"\n{table(found)}", end="")
    if OUT.value:
        save_json(Path(OUT.value), {**about, **found})


if __name__ == "__main__":
    cli.run(main)
