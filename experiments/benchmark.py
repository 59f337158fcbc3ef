"""Measures the training step and the scoring of a config, and the matrix-product rate of the device in the same run.

python -m experiments.benchmark [--config configs/digits.py] [--shape 8,8,1] [--out benchmark.json]

FLOPs are XLA's count for the compiled program; "of peak" is their rate over that of a 2048 x 2048 x 2048 product.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffad_jax import runs
from diffad_jax.evaluation import make_levels
from diffad_jax.sharding import data_mesh, replicate, split
from diffad_jax.training import Batch, make_dispatch
from experiments import cli

CONFIG = cli.config_flag("configs/digits.py")
SHAPE = flags.DEFINE_list("shape", ["8", "8", "1"], "Shape of one datum: H,W,C for pictures or D for vectors.")
OUT = flags.DEFINE_string("out", None, "File for the figures as JSON.")
REPEATS = 5


def seconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median time of a call, after one that warms up."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main(_: list[str]) -> None:
    config, shape = CONFIG.value, tuple(map(int, SHAPE.value))
    side = 2048
    matrix = jnp.ones((side, side))
    peak = 2 * side**3 / seconds(lambda: matmul(matrix))

    system, state, step, training = runs.start(config, shape)
    mesh = data_mesh(training.batch_size)
    count = training.steps_per_dispatch
    rows = np.zeros((count, training.batch_size, *shape), np.float32)
    batch = split(Batch(rows, np.tile(np.arange(training.batch_size), (count, 1))), mesh, axis=1)  # type: ignore[arg-type]
    params = jax.tree.map(np.asarray, state.params)
    state, key = replicate((state, jax.random.key(0)), mesh)
    started = time.perf_counter()
    dispatch = make_dispatch(step, count)
    # One device's share of the program, times the devices.
    cost: Any = dispatch.lower(state, batch, key).compile().cost_analysis()
    flops = cost["flops"] * mesh.size / count
    compile_seconds = time.perf_counter() - started

    def train() -> Any:
        nonlocal state
        state, metrics = dispatch(state, batch, key)
        return metrics

    train_seconds = seconds(train) / count
    scoring = runs.scoring_of(config)
    score = make_levels(system, params, 0, scoring.batch_size)
    score_seconds = seconds(lambda: score(np.zeros((scoring.batch_size, *shape), np.float32)))
    figures = {
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "model": config.model.name,
        "parameters": sum(math.prod(p.shape) for p in jax.tree.leaves(params)),
        "matmul_gflops": peak / 1e9,
        "compile_seconds": compile_seconds,
        "train_steps_per_second": 1 / train_seconds,
        "train_examples_per_second": training.batch_size / train_seconds,
        "train_gflops": flops / train_seconds / 1e9,
        "train_of_peak": flops / train_seconds / peak,
        "score_examples_per_second": scoring.batch_size / score_seconds,
        "network_evaluations_per_datum": system.score.evaluations,
    }
    for name, value in figures.items():
        print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value}")
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(figures, indent=2) + "\n")


@jax.jit
def matmul(x: jax.Array) -> jax.Array:
    return x @ x


if __name__ == "__main__":
    cli.run(main)
