"""Training: the state, the pure step, and the optimiser. No files, no clocks; `loop` drives it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from diffad_jax import compiler
from diffad_jax.noise import keys_for

Params = Any
Loss = Callable[[Params, Array, Array, Array], Array]
"""(params, x_0 [B, ...], u [B] in [0, 1), keys [B]) -> loss [B]: u places the noise level, keys draw the rest."""


class TrainState(NamedTuple):
    """Everything that a training run carries from step to step."""

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState


class Batch(NamedTuple):
    """x_0: [B, ...]; place: int [B], the example's global place in the step's batch, which seeds its noise."""

    x_0: Array
    place: Array


TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]
"""(state, batch, key) -> (state, metrics): what `make_train_step` makes."""


class Training(NamedTuple):
    """config.training: how long, in what portions, and what is averaged.

    steps_per_dispatch: steps compiled into one program. ema_decay, accumulate: see `make_train_step`. log_every and
    checkpoint_every: steps, rounded up to whole dispatches.
    validation_rows: evenly spaced training rows that are held out, also of the transform's fit: on them every checkpoint's
    averaged parameters get a loss, and scores are calibrated. A number below 1 is a share of the rows, of which no more than
    scoring.calibration_rows are taken. keep: the checkpoint that becomes the model, "last" or "best" by that loss.
    suspected: the share of the training rows, vectors, that are expected to be no normals. Twice as many, see
    `baselines.trusted`, are left out; the threshold knows of them, but for so many of the highest scores.
    """

    num_steps: int
    batch_size: int = 64
    steps_per_dispatch: int = 1
    ema_decay: float = 0.999
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    validation_rows: float = 0
    keep: str = "last"
    suspected: float = 0


def make_optimizer(
    num_steps: int,
    learning_rate: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """AdamW under a linear warm-up over the fraction `warmup` of num_steps, then a cosine to 0; gradients clipped by norm.

    The warm-up takes a step at least and begins with a rate of 0, so that the first step moves nothing.
    """
    warmup_steps = max(1, round(warmup * num_steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, max(num_steps, warmup_steps + 1))
    return optax.chain(_clip(clip_norm), optax.adamw(compiler.piece(schedule), b2=b2, weight_decay=weight_decay))


# On a CPU a program is read from the compilation cache the more slowly the longer it is. The numbers that all parameters
# share are therefore pieces, which XLA does not repeat in the update of each, and the squares of small arrays make one sum.


def global_norm(tree: Params) -> Array:
    """The square root of the sum of all squares; arrays of less than 2^16 elements are put together first."""
    leaves = jax.tree.leaves(tree)
    small = [x.ravel() for x in leaves if x.size < 2**16]
    joined = [jnp.concatenate(small)] if small else []
    return optax.tree.norm(joined + [x for x in leaves if x.size >= 2**16])


def _clip(norm: float) -> optax.GradientTransformation:
    """Gradients g min(1, norm / |g|). Optax's clipping divides them, and XLA then writes all of them once more."""

    def scaled(grads: Params, _: Params) -> Params:
        factor = compiler.piece(lambda found: jnp.minimum(1.0, norm / found))(global_norm(grads))
        return jax.tree.map(lambda g: factor * g, grads)

    return optax.stateless(scaled)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the moving average starts at the parameters."""
    # A copy, because the step donates its input buffers and no buffer may be donated twice.
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    ema_decay: float = 0.999,
    accumulate: int = 1,
    mean_over_devices: Callable[[Any], Any] = lambda x: x,
) -> TrainStep:
    """The pure step (state, batch, key) -> (state, metrics).

    Noise comes from key folded with the step and each example's global index, so the split of a batch over devices or
    accumulation passes changes nothing, but for dropout, whose masks each part draws for itself. Noise levels are stratified
    over the batch: u_i = (u + i / batch_size) mod 1 with one u a step (Kingma et al. 2021, appendix I.1). The average of
    the parameters follows ema <- d ema + (1 - d) params, d = min(ema_decay, (1 + step) / (10 + step)).
    batch_size: the global one. accumulate: passes that the batch is cut into. mean_over_devices: `jax.lax.pmean` under pmap.
    """

    def mean_loss(params: Params, batch: Batch, key: Array) -> Array:
        offset = jax.random.uniform(jax.random.fold_in(key, 0))
        u = (offset + batch.place / batch_size) % 1.0
        return loss(params, batch.x_0, u, keys_for(jax.random.fold_in(key, 1), batch.place)).mean()

    def gradient(params: Params, batch: Batch, key: Array) -> tuple[Array, Params]:
        if accumulate == 1:
            return jax.value_and_grad(mean_loss)(params, batch, key)
        # Every pass takes some rows of each device.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: tuple[Array, Params], part: Batch) -> tuple[tuple[Array, Params], None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(mean_loss)(params, part, key)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        value, grads = mean_over_devices(gradient(state.params, batch, jax.random.fold_in(key, state.step)))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = compiler.piece(lambda step: jnp.minimum(ema_decay, (1 + step) / (10 + step)))(state.step)
        ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, params)
        metrics = {"loss": value, "grad_norm": global_norm(grads)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def make_dispatch(
    train_step: TrainStep,
    steps: int,
    compile: Callable[[Callable[..., Any]], Any] | None = None,
) -> Any:
    """Compiles `steps` train steps as one dispatch; batch leaves are [steps, B, ...], metrics the mean over the steps.

    compile: for many devices, `sharding.Parallel.compile`. The dispatch reuses the memory of the state that it is given.
    """

    def dispatch(state: TrainState, batches: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        if steps == 1:
            return train_step(state, jax.tree.map(lambda x: x[0], batches), key)
        state, metrics = jax.lax.scan(lambda s, b: train_step(s, b, key), state, batches)
        return state, jax.tree.map(lambda m: m.mean(axis=0), metrics)

    return (compile or partial(compiler.jit, donate_argnums=0))(dispatch)
