"""The train step: what fixes its result, what may not change it, and that it learns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import Array
from ml_collections import ConfigDict

from diffad_jax.assembly import assemble
from diffad_jax.data.digits import digits
from diffad_jax.losses import bits_per_dim, bound, discretised_gaussian_decoder
from diffad_jax.noise import gaussian
from diffad_jax.plan import define
from diffad_jax.samplers import sample, uniform
from diffad_jax.training import (
    Batch,
    Params,
    TrainState,
    global_norm,
    init_state,
    make_dispatch,
    make_optimizer,
    make_train_step,
)

B, D = 16, 3
DATA = np.random.default_rng(0).normal(size=(8, B, D)).astype(np.float32)
KEY = jax.random.key(0)


def noisy_regression(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
    """A loss that feels every input: the datum, its noise level and its noise."""
    return ((gaussian(keys, x_0) + u[:, None] * (x_0 @ params["w"]) - params["b"]) ** 2).mean(axis=-1)


def test_a_network_of_bfloat16_is_trained_in_float32() -> None:
    config = tiny.get_config("vectors")
    config.model.dtype = "bfloat16"
    _, init, step, training = define(config, (D,))
    given = init(), Batch(jnp.zeros((training.batch_size, D)), jnp.arange(training.batch_size)), KEY
    assert "bf16" in str(jax.make_jaxpr(step)(*given))
    state, _ = jax.eval_shape(step, *given)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype("float32")}


@pytest.mark.parametrize("model", ["MLP", "DiT", "UNet"])
def test_a_step_keeps_float32_where_jax_knows_float64(model: str) -> None:
    """In a process that has switched it on for something else; a scan over steps would refuse other types."""
    config, shape = tiny.get_config("digits" if model == "UNet" else "vectors"), (8, 8, 1) if model == "UNet" else (D,)
    if model == "DiT":
        config.model = {"name": "DiT", "patch_size": 1, "width": 16, "depth": 2, "num_heads": 2}
    with jax.enable_x64(True):
        _, init, step, training = define(config, shape)
        count = training.batch_size
        state = jax.eval_shape(init)
        after, _ = jax.eval_shape(step, state, Batch(jnp.zeros((count, *shape), jnp.float32), jnp.arange(count)), KEY)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert jnp.dtype("float64") not in {leaf.dtype for leaf in jax.tree.leaves(state)}


def start(optimizer: optax.GradientTransformation) -> TrainState:
    return init_state({"w": jnp.eye(D), "b": jnp.zeros(D)}, optimizer)


def batches(first: int, count: int) -> Batch:
    """Batches first..first+count-1 of DATA, leaves [count, B, ...]."""
    return Batch(jnp.asarray(DATA[first : first + count]), jnp.tile(jnp.arange(B), (count, 1)))


def train(per_dispatch: int = 1, key: Array = KEY, **options: Any) -> tuple[list[TrainState], list[float]]:
    """The states and losses after each dispatch of eight steps."""
    optimizer = optax.adam(0.1)
    dispatch = make_dispatch(make_train_step(noisy_regression, optimizer, B, **options), per_dispatch)
    state, states, losses = start(optimizer), [], []
    for first in range(0, len(DATA), per_dispatch):
        state, metrics = dispatch(state, batches(first, per_dispatch), key)
        # Copies, because the next dispatch overwrites what it is given.
        states.append(jax.tree.map(np.array, state))
        losses.append(float(metrics["loss"]))
    return states, losses


@pytest.fixture(scope="module")
def run() -> tuple[list[TrainState], list[float]]:
    return train()


def assert_close(one: Any, other: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_a_run_is_a_function_of_its_seed(run: tuple[list[TrainState], list[float]]) -> None:
    again, losses = train()
    jax.tree.map(np.testing.assert_array_equal, run, (again, losses))
    other, _ = train(key=jax.random.key(1))
    assert np.abs(run[0][-1].params["w"] - other[-1].params["w"]).max() > 1e-3


def test_every_step_and_every_place_draws_its_own_noise() -> None:
    step = jax.jit(
        make_train_step(lambda p, x, u, keys: gaussian(keys, x).mean(axis=-1) + 0 * p["b"][0], optax.sgd(1.0), B)
    )
    state, zeros = start(optax.sgd(1.0)), np.zeros((B, D), np.float32)

    def noise(at: int, places: np.ndarray) -> float:
        return float(step(state._replace(step=jnp.asarray(at)), Batch(zeros, places), KEY)[1]["loss"])

    places = np.arange(B)
    assert noise(0, places) != noise(1, places)
    assert noise(0, places) == pytest.approx(noise(0, places[::-1]))
    # One draw shared by all places would not change with the places that there are.
    assert noise(0, places) != pytest.approx(noise(0, np.zeros_like(places)))


def test_noise_levels_cover_the_unit_interval_evenly() -> None:
    def count_bins(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
        return -jax.nn.one_hot(jnp.floor(u * B).astype(int), B) @ params

    optimizer = optax.sgd(1.0)
    step = make_train_step(count_bins, optimizer, B)
    state, _ = step(init_state(jnp.zeros(B), optimizer), jax.tree.map(lambda x: x[0], batches(0, 1)), KEY)
    np.testing.assert_allclose(state.params, 1 / B, rtol=1e-6)


def test_every_step_has_its_own_noise_levels() -> None:
    step = jax.jit(make_train_step(lambda p, x, u, keys: u + 0 * p["b"][0], optax.sgd(1.0), B))
    state, batch = start(optax.sgd(1.0)), jax.tree.map(lambda x: x[0], batches(0, 1))
    means = [float(step(state._replace(step=jnp.asarray(at)), batch, KEY)[1]["loss"]) for at in range(4)]
    assert len(set(means)) == 4 and abs(np.mean(means) - 0.5) < 1 / B


def test_accumulated_gradients_give_the_same_parameters(run: tuple[list[TrainState], list[float]]) -> None:
    assert_close(run, train(accumulate=4))


def test_a_dispatch_of_four_steps_is_four_steps(run: tuple[list[TrainState], list[float]]) -> None:
    (states, losses), (scanned, means) = run, train(per_dispatch=4)
    assert int(scanned[-1].step) == 8
    assert_close(states[-1], scanned[-1])
    np.testing.assert_allclose(np.reshape(losses, (2, 4)).mean(axis=1), means, rtol=1e-5)


def test_the_moving_average() -> None:
    states, _ = train(ema_decay=0.3)
    expected = np.eye(D)
    for number, state in enumerate(states):
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * state.params["w"]
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-5, atol=1e-6)


def test_the_schedule_warms_up_peaks_and_ends_at_zero() -> None:
    """Under a constant gradient every update of Adam is the learning rate itself."""
    rate, steps, warmup = 1e-2, 100, 10
    optimizer = make_optimizer(steps, rate, warmup=warmup / steps)
    gradient = jnp.asarray(0.5)

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], Array]:
        updates, opt_state = optimizer.update(gradient, carry[1], carry[0])
        return (carry[0] + updates, opt_state), -updates

    start = jnp.zeros(())
    rates = np.asarray(jax.lax.scan(step, (start, optimizer.init(start)), None, steps)[1])
    np.testing.assert_allclose(rates[: warmup + 1], rate * np.arange(warmup + 1) / warmup, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(rates[warmup + (steps - warmup) // 2], rate / 2, rtol=1e-3)
    assert rates.argmax() == warmup and (np.diff(rates[warmup:]) < 0).all() and rates[-1] < 1e-3 * rate


def test_weights_decay_and_large_gradients_are_clipped() -> None:
    decaying = make_optimizer(1, 0.1, weight_decay=0.5)
    state = decaying.init(jnp.asarray(2.0))
    for _ in range(2):  # The first rate of the warm-up is 0.
        update, state = decaying.update(jnp.zeros(()), state, jnp.asarray(2.0))
    np.testing.assert_allclose(update, -0.1 * 0.5 * 2.0, rtol=1e-5)

    def second_moment(gradient: list[float]) -> np.ndarray:
        optimizer = make_optimizer(1, clip_norm=1.0, b2=0.99)
        _, state = optimizer.update(jnp.asarray(gradient), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
        return np.asarray(optax.tree.get(state, "nu"))

    np.testing.assert_allclose(second_moment([300.0, 400.0]), 0.01 * np.array([0.36, 0.64]), rtol=1e-4)
    large = {"a": jnp.full((300, 300), 0.1), "b": jnp.full(7, 2.0), "c": jnp.full((2, 2**15), 0.3)}
    np.testing.assert_allclose(global_norm(large), optax.tree.norm(large), rtol=1e-6)
    np.testing.assert_allclose(second_moment([0.3, 0.4]), 0.01 * np.array([0.09, 0.16]), rtol=1e-4)


def test_training_lowers_the_bound_on_held_out_digits_and_samples_look_like_them() -> None:
    steps, chain = 500, 50
    config = ConfigDict(
        {
            "process": {"name": "cosine"},
            "model": {"name": "MLP", "width": 128, "depth": 1},
            "denoiser": {"predicts": "v", "learned_variance": True},
            "loss": {"name": "hybrid", "num_steps": chain},
            "sampler": {"name": "ddpm", "variance": "learned"},
            "decoder": {"name": "discretised_gaussian_decoder", "levels": 17},
            "score": {"name": "bound", "num_steps": chain, "variance": "learned"},
        }
    )
    rows = (digits(anomalous_class=0).train.reshape(-1, 64) / 8 - 1).astype(np.float32)
    held_out, rows = rows[::10], np.delete(rows, np.s_[::10], axis=0)
    system = assemble(config, rows.shape[1:])
    optimizer = make_optimizer(steps, 3e-3)
    state = init_state(jax.jit(system.init)(KEY), optimizer)

    @jax.jit
    def bits(params: Params) -> Array:
        decoder = discretised_gaussian_decoder(17)
        keys = jax.random.split(jax.random.key(1), len(held_out))
        nats, _ = bound(system.process, system.denoise(params), jnp.asarray(held_out), keys, decoder, chain, "learned")
        return bits_per_dim(nats, held_out.shape[1:]).mean()

    before = float(bits(state.params))
    dispatch = make_dispatch(make_train_step(system.loss, optimizer, 64, ema_decay=0.99), 100)
    generator = np.random.default_rng(0)
    for _ in range(steps // 100):
        batch = Batch(
            jnp.asarray(rows[generator.integers(len(rows), size=(100, 64))]), jnp.tile(jnp.arange(64), (100, 1))
        )
        state, _ = dispatch(state, batch, KEY)
    after = float(bits(state.ema))
    # 17 values without any knowledge cost log2(17) = 4.09 bits.
    assert after < 0.8 * before and after < 0.85 * np.log2(17)

    keys = jax.random.split(jax.random.key(2), 256)
    x_1 = gaussian(keys, jnp.zeros((256, 64)))
    drawn = jax.jit(lambda p: sample(system.sampler, system.denoise(p), x_1, uniform(chain), keys))(state.ema)
    assert abs(float(drawn.mean()) - rows.mean()) < 0.1
    assert np.corrcoef(drawn.mean(axis=0), rows.mean(axis=0))[0, 1] > 0.9
    assert drawn.std(axis=0).mean() == pytest.approx(rows.std(axis=0).mean(), rel=0.3)
