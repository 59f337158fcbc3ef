"""The forward process against products, compositions and Bayes' rule worked out by other means."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import PROCESSES, amplitudes
from jax import Array
from numpy.testing import assert_allclose, assert_array_equal

from diffad_jax import noise, process
from diffad_jax.errors import InputError

every_process = pytest.mark.parametrize("name", PROCESSES)
# Compiled whole: one by one the small operations cost more to compile than all tests to run.
transition = partial(jax.jit, static_argnums=0)(process.transition)
posterior = partial(jax.jit, static_argnums=0)(process.posterior)
diffuse = partial(jax.jit, static_argnums=0)(process.diffuse)
time_at = partial(jax.jit, static_argnums=0)(process.time_at)
gaussian = jax.jit(noise.gaussian)


def random_times(count: int, first: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """s < t, not closer than 0.001, in [first, 1]."""
    s, t = np.sort(np.random.default_rng(0).uniform(first, 0.999, (2, count)), axis=0)
    return s, t + 0.001


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("betas", [process.linear_betas(), process.cosine_betas(), process.linear_betas(10, 0.1, 0.6)])
def test_chain_is_the_process_on_its_grid(betas: np.ndarray, x64: bool) -> None:
    with jax.enable_x64(x64):
        chain, steps = process.chain(betas), len(betas)
        alpha_bar, grid = np.cumprod(1 - betas), np.arange(steps + 1) / steps
        tolerance = 1e-9 if x64 else 2e-4
        alpha, sigma = amplitudes(chain, grid[1:])
        assert_allclose(alpha, np.sqrt(alpha_bar), rtol=tolerance)
        assert_allclose(sigma, np.sqrt(1 - alpha_bar), rtol=tolerance)
        # k / T is no binary fraction: a few roundings of t leave a grid point where it is, on the steepest step too.
        assert_allclose(amplitudes(chain, grid[1:] * (1 - 3e-7)), (alpha, sigma), rtol=2e-6)
        mean, variance = transition(chain, np.ones((steps, 1)), grid[:-1], grid[1:])
        assert_allclose(mean[:, 0], np.sqrt(1 - betas), rtol=tolerance)
        assert_allclose(variance, betas, rtol=tolerance)


@pytest.mark.parametrize("num_steps", [25, 250, 4000])
def test_chains_of_any_length_end_with_about_as_much_noise(num_steps: int) -> None:
    end = float(process.linear(num_steps).log_snr(jnp.ones(())))
    assert -16 < end < -9.9, "1,000 steps end at -10.1"
    own = process.linear(num_steps, 1e-4, 0.01)
    alpha_bar = np.prod(1 - process.linear_betas(num_steps, 1e-4, 0.01))
    assert_allclose(own.log_snr(jnp.ones(())), np.log(alpha_bar / (1 - alpha_bar)), rtol=1e-4)


def test_shorter_chain_is_a_coarser_grid() -> None:
    with jax.enable_x64(True):
        fine = process.linear_betas()
        alpha_bar = np.append(1, np.cumprod(1 - fine))[::20]
        coarse = process.chain(1 - alpha_bar[1:] / alpha_bar[:-1])
        t = np.arange(1, 51) / 50
        assert_allclose(amplitudes(coarse, t), amplitudes(process.chain(fine), t), rtol=1e-9)


@every_process
def test_transitions_compose(name: str) -> None:
    with jax.enable_x64(True):
        p, (s, t) = PROCESSES[name], random_times(200)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = amplitudes(p, s), amplitudes(p, t)
        mean, variance = transition(p, np.asarray(alpha_s)[:, None], s, t)
        assert_allclose(mean[:, 0], alpha_t, rtol=1e-9)
        carried, _ = transition(p, np.asarray(sigma_s)[:, None], s, t)
        assert_allclose(np.asarray(carried)[:, 0] ** 2 + variance, np.square(sigma_t), rtol=1e-9)
        assert_allclose(np.square(alpha_t) + np.square(sigma_t), 1, rtol=1e-12)


@every_process
def test_posterior_is_bayes_rule(name: str) -> None:
    with jax.enable_x64(True):
        p, (s, t), x_0 = PROCESSES[name], random_times(200, first=0.01), np.full((200, 1), 0.7)
        x_t = np.asarray(diffuse(p, x_0, t, np.full((200, 1), 1.5)))
        mean, variance = posterior(p, x_0, x_t, s, t)
        # p(x_s | x_t, x_0) ~ p(x_t | x_s) p(x_s | x_0), on a grid of x_s wide and fine enough for both factors.
        alpha_s, sigma_s = (np.asarray(a)[:, None] for a in amplitudes(p, s))
        near = alpha_s * x_0
        x_s = near + sigma_s * np.linspace(-8, 8, 4001)
        forward, noise_variance = (np.asarray(a) for a in transition(p, x_s, s, t))
        log_density = -((x_t - forward) ** 2) / (2 * noise_variance[:, None]) - (x_s - near) ** 2 / (2 * sigma_s**2)
        density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        weights = density / density.sum(axis=1, keepdims=True)
        exact = (weights * x_s).sum(axis=1, keepdims=True)
        assert_allclose(mean, exact, rtol=1e-6, atol=1e-8)
        assert_allclose(variance, (weights * (x_s - exact) ** 2).sum(axis=1), rtol=1e-6)


@every_process
def test_from_the_datum_itself(name: str) -> None:
    p, s, t = PROCESSES[name], np.zeros(3), np.array([0.001, 0.5, 1.0])
    x_0, x_t = np.array([[1.0], [-2.0], [0.5]], np.float32), np.array([[0.9], [4.0], [-1.0]], np.float32)
    assert_array_equal(diffuse(p, x_0, s, x_t), x_0)
    mean, variance = posterior(p, x_0, x_t, s, t)
    assert_array_equal(mean, x_0)
    assert_array_equal(variance, 0)
    mean, variance = transition(p, x_0, s, t)
    alpha, sigma = amplitudes(p, t)
    assert_allclose(mean, np.asarray(alpha)[:, None] * x_0, rtol=1e-6)
    assert_allclose(variance, np.square(sigma), rtol=1e-6)


def test_a_chain_that_leaves_nothing_of_the_datum_is_refused() -> None:
    """Its alpha would be 0 in float32, and what is divided by it no number."""
    for p in (process.linear(1000, 1e-4, 0.2), process.log_linear(0.002, 1e18), process.log_linear(1e-18, 80)):
        with pytest.raises(
            InputError, match=r"config.process: log_snr is .*; allowed are .* from 80 or less to -80 or"
        ):
            process.check_process(p)
    p = process.linear(1000, 1e-4, 0.149)
    process.check_process(p)
    assert p.alpha(1.0) > 0 and np.isfinite(p.log_snr(1.0))


def test_times_may_be_whole_numbers() -> None:
    p = process.linear()
    assert_array_equal(p.log_snr(np.arange(2)), p.log_snr(np.arange(2.0)))


@pytest.mark.parametrize(
    ("log_snr", "words"),
    [
        (lambda t: 5 - 10 * t, "log_snr is 5 at t = 0, allowed is inf"),
        (lambda t: -2 * jnp.log(jnp.tan(jnp.pi / 2 * t)), "log_snr is -12.* at t = 0.999 and nan at 1;"),
        (lambda t: jnp.where(t < 1, -jnp.log(t), -jnp.inf), "and -inf at 1; allowed are values that fall with t"),
        (lambda t: 1 / t + 20 * jnp.maximum(t - 0.5, 0), "allowed are values that fall with t"),
    ],
)
def test_processes_that_are_refused(log_snr: Callable[[Array], Array], words: str) -> None:
    with pytest.raises(InputError, match=f"config.process: .*{words}"):
        process.check_process(process.Process(log_snr))


@every_process
def test_every_process_is_taken(name: str) -> None:
    process.check_process(PROCESSES[name])


@every_process
def test_log_snr_keeps_its_digits_in_float32(name: str) -> None:
    """Near t = 0 above all, where a sum that is nearly 1 would have lost them."""
    p, t = PROCESSES[name], np.geomspace(1e-5, 1, 200, dtype=np.float32)
    found = np.asarray(p.log_snr(t))
    with jax.enable_x64(True):
        assert_allclose(found, p.log_snr(t.astype(np.float64)), rtol=0, atol=5e-6)


@every_process
def test_log_snr_falls_and_time_at_inverts_it(name: str) -> None:
    with jax.enable_x64(True):
        p, t = PROCESSES[name], np.linspace(0, 1, 5001)
        log_snr = np.asarray(jax.jit(p.log_snr)(t))
        assert np.isposinf(log_snr[0])
        assert (np.diff(log_snr) < 0).all()
        # A chain's log_snr is flat within a thousandth of a step of its grid points.
        asked = np.concatenate([log_snr[1:], [100.0, -100.0]])
        assert_allclose(time_at(p, asked), np.concatenate([t[1:], [0, 1]]), atol=1e-3 / 1000)


def test_who_shares_noise() -> None:
    x, key = np.zeros((3, 4), np.float32), jax.random.key(5)
    shared = np.asarray(gaussian(key, x))
    assert_array_equal(shared, shared[:1].repeat(3, axis=0))
    keys = noise.keys_for(key, np.array([7, 2, 9]))
    own = np.asarray(gaussian(keys, x))
    assert len(np.unique(own)) == own.size
    # A datum's draw follows its global index, wherever it stands in a batch, and the step that folds it in.
    elsewhere = noise.keys_for(key, np.array([9, 7, 4]))
    assert_array_equal(gaussian(elsewhere, x)[:2], own[[2, 0]])
    folded = np.asarray(gaussian(noise.fold_in(keys, 1), x))
    assert_array_equal(folded[1], gaussian(noise.fold_in(keys[1], 1), x)[0])
    assert not np.isclose(folded, own).any()


def test_the_offset_of_the_cosine_reaches_its_chain() -> None:
    t = jnp.array([0.1, 0.5, 1.0])
    expected = process.chain(process.cosine_betas(1000, 0.1)).log_snr(t)
    assert_allclose(process.cosine(1000, 0.1).log_snr(t), expected)
