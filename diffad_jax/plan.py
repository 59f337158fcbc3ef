"""From a config to what a run trains: its system, the state before the first step, the step; traced before all else."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import samplers
from diffad_jax.assembly import System, assemble
from diffad_jax.build import call, within
from diffad_jax.calibration import COMBINATIONS
from diffad_jax.errors import InputError
from diffad_jax.evaluation import MEMORY
from diffad_jax.memory import local_statistics
from diffad_jax.process import check_process
from diffad_jax.ranges import check_ranges, check_sections
from diffad_jax.settings import training_of
from diffad_jax.sharding import mean_over_devices
from diffad_jax.training import Params, Training, TrainState, TrainStep, init_state, make_optimizer, make_train_step


class Plan(NamedTuple):
    """What a config makes of data of one shape. init: pure, makes the state before the first step."""

    system: System
    init: Callable[[], TrainState]
    step: TrainStep
    settings: Training


def define(config: ConfigDict, shape: tuple[int, ...]) -> Plan:
    """The plan of a config; raises InputError, naming the key, on what a config may not hold."""
    check_sections(config)
    check_ranges(config)
    system = assemble(config, shape)
    training = training_of(config)
    optimizer = call("optimizer", make_optimizer, config.optimizer, num_steps=training.num_steps)

    drawn = jax.jit(lambda key: init_state(system.init(key), optimizer))

    def init() -> TrainState:
        # The default generator takes three times as long to compile for a network's many small draws.
        return drawn(jax.random.key(config.seed, impl="rbg"))

    mean = {"mean_over_devices": mean_over_devices} if config.get("parallel") == "pmap" else {}
    step = make_train_step(system.loss, optimizer, training.batch_size, training.ema_decay, training.accumulate, **mean)
    return Plan(system, init, step, training)


def check(system: System, params: Params, shape: tuple[int, ...], combination: str) -> None:
    """Traces loss, score and sampler without computing, so that what they refuse is refused before anything is written.

    Raises InputError also where loss or maps have another shape than one value, or map, a datum, which broadcasting would
    hide.
    """
    logarithmic = [*(name for name, one in COMBINATIONS.items() if one.logarithmic), MEMORY]
    if system.score.signed and combination in logarithmic:
        raise InputError(
            f"config.scoring.combination: found {combination!r}, which takes logarithms; this score may be negative, and "
            f"allowed with it are {', '.join(name for name in COMBINATIONS if name not in logarithmic)}"
        )
    check_process(system.process)

    def trace(params: Params, key: Array) -> tuple[Array, Array, Array]:
        x, denoise = jnp.zeros((2, *system.shape)), system.denoise(params)
        with within("config.score"):
            maps = system.score.maps(denoise, jnp.zeros((2, *shape)), key)
            if maps.ndim < 2 or maps.shape[1] != 2:
                raise InputError(f"its maps of 2 data have the shape {maps.shape}, needed is (levels, 2, ...)")
            if combination == MEMORY:
                maps = local_statistics(maps)
        with within("config.loss"):
            loss = system.loss(params, x, jnp.zeros(2), jax.random.split(key))
            if loss.shape != (2,):
                raise InputError(f"its values for 2 data have the shape {loss.shape}, needed is (2,)")
        with within("config.sampler"):
            return loss, maps, samplers.sample(system.sampler, denoise, x, samplers.uniform(1), key)

    jax.eval_shape(trace, params, jax.random.key(0))
