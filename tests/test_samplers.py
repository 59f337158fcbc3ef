"""Every sampler against the exact flow and the exact law of Gaussian data, and the grids it runs on."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import PROCESSES, amplitudes, flow, gaussian_denoise, marginal_variance
from jax import Array
from numpy.testing import assert_allclose, assert_array_equal

from diffad_jax import samplers
from diffad_jax.assembly import SAMPLERS
from diffad_jax.parametrisation import Prediction
from diffad_jax.process import Process, linear, log_linear
from diffad_jax.samplers import Sampler, sample

MEAN, DEVIATION = np.array([0.5, -1.0, 0.0, 2.0]), np.array([0.25, 1.0, 0.6, 1.7])
KEY = jax.random.key(0)
every_process = pytest.mark.parametrize("name", PROCESSES)
run = partial(jax.jit, static_argnums=(0, 1))(sample)
karras = partial(jax.jit, static_argnums=(0, 1))(samplers.karras)


def errors(name: str, make: str, counts: tuple[int, ...], grid: str) -> np.ndarray:
    """The largest distance from the exact flow, for each number of steps."""
    p = PROCESSES[name]
    sampler, denoise = getattr(samplers, make)(p), gaussian_denoise(p, MEAN, DEVIATION)
    x = np.array([[1.5], [-0.7]]) * np.sqrt(marginal_variance(p, 1.0, DEVIATION))
    found = []
    for count in counts:
        times = np.asarray(karras(p, count)) if grid == "karras" else np.linspace(1.0, 0.05, count + 1)
        exact = flow(p, x, times[0], times[-1], MEAN, DEVIATION)
        found.append(np.abs(np.asarray(run(sampler, denoise, x, times, KEY)) - exact).max())
    return np.array(found)


@pytest.mark.parametrize(("make", "order"), [("ddim", 1), ("heun", 2), ("dpm_solver_2m", 2)])
@pytest.mark.parametrize(("name", "grid"), [("linear", "uniform"), ("log_linear", "karras")])
def test_order_of_convergence(name: str, grid: str, make: str, order: int) -> None:
    """The log-log slope is within 0.15 of the order; `karras` goes all the way to 0, first-order last step included."""
    with jax.enable_x64(True):
        counts = (32, 64, 128)
        found = errors(name, make, counts, grid)
        slope = -np.polyfit(np.log(counts), np.log(found), 1)[0]
        assert abs(slope - order) < 0.15, (slope, found)
        assert found[-1] < 0.1


def test_inversion_returns_to_the_start() -> None:
    with jax.enable_x64(True):
        p = PROCESSES["cosine"]
        denoise, ddim = gaussian_denoise(p, MEAN, DEVIATION), samplers.ddim(p)
        x = np.array([[1.0, -0.5, 0.2, 3.0], [0.1, 2.0, -1.5, 0.0]])

        def there_and_back(count: int) -> tuple[np.floating, np.floating]:
            up = np.linspace(0.01, 0.9, count + 1)
            there = np.asarray(run(ddim, denoise, x, up, KEY))
            back = np.asarray(run(ddim, denoise, there, up[::-1], KEY))
            return np.abs(there - flow(p, x, up[0], up[-1], MEAN, DEVIATION)).max(), np.abs(back - x).max()

        found = np.array([there_and_back(count) for count in (40, 80, 160)])
        assert (found[1:] < 0.6 * found[:-1]).all(), found
        assert found[-1].max() < 0.05


@pytest.mark.parametrize("name", ["cosine", "log_linear"])
def test_ancestral_sampling_with_the_exact_variance_is_exact(name: str) -> None:
    """In 8 steps; the last one, without noise, gives E[x_0 | x_t], whose variance is known."""
    p, count, draws = PROCESSES[name], 8, 8192
    sampler, denoise = samplers.ddpm(p, "learned"), gaussian_denoise(p, MEAN, DEVIATION, count)
    (last, _), (first, _) = amplitudes(p, 1 / count), amplitudes(p, 1.0)
    variance = (np.asarray(last) * DEVIATION**2) ** 2 / marginal_variance(p, 1 / count, DEVIATION)
    start = np.random.default_rng(0).normal(size=(draws, 4)) * np.sqrt(marginal_variance(p, 1.0, DEVIATION))
    start = np.asarray(start + np.asarray(first) * MEAN, np.float32)
    within_errors(run(sampler, denoise, start, samplers.uniform(count), jax.random.split(KEY, draws)), variance)


@pytest.mark.parametrize(
    "make", [samplers.ddpm, partial(samplers.ddpm, variance="large"), partial(samplers.ddim, eta=1.0)]
)
def test_ancestral_sampling_draws_the_data(make: Callable[[Process], Sampler]) -> None:
    p, draws = PROCESSES["cosine"], 4096
    sampler, denoise = make(p), gaussian_denoise(p, MEAN, DEVIATION)
    start = np.random.default_rng(0).normal(size=(draws, 4)).astype(np.float32)
    within_errors(run(sampler, denoise, start, samplers.uniform(300), jax.random.split(KEY, draws)), DEVIATION**2)


def within_errors(draws: Array, variance: np.ndarray) -> None:
    """Mean and variance of the draws lie within 4 standard errors of MEAN and variance."""
    x = np.asarray(draws)
    assert (np.abs(x.mean(axis=0) - MEAN) < 4 * np.sqrt(variance / len(x))).all(), x.mean(axis=0)
    assert (np.abs(x.var(axis=0) / variance - 1) < 4 * np.sqrt(2 / len(x))).all(), x.var(axis=0)


@every_process
def test_ddim_with_eta_1_is_ddpm(name: str) -> None:
    p, x = PROCESSES[name], np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    denoise, ddpm, ddim = gaussian_denoise(p, MEAN, DEVIATION), samplers.ddpm(p), samplers.ddim(p, eta=1.0)

    @jax.jit
    def steps(t: Array, s: Array) -> tuple[Array, Array]:
        return ddpm.step(denoise, x, t, s, KEY, ())[0], ddim.step(denoise, x, t, s, KEY, ())[0]

    for t, s in [(1.0, 0.9), (0.5, 0.499), (0.3, 0.01), (0.01, 0.0)]:
        of_ddpm, of_ddim = steps(t, s)
        assert_allclose(of_ddim, of_ddpm, rtol=1e-4, atol=1e-4)


def test_eta_scales_the_noise() -> None:
    """The noise of a step has variance eta^2 beta_tilde, and the marginal of x_s stays right."""
    p = PROCESSES["cosine"]
    sampler = samplers.ddim(p, eta=0.5)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (np.asarray(amplitudes(p, t)) for t in (0.4, 0.5))

    def none(x: Array, t: Array) -> Prediction:
        return Prediction(0 * x, x / p.sigma(t))

    x_t = np.full((1, 20000), sigma_t, np.float32)
    x_s = np.asarray(jax.jit(lambda x, t, s: sampler.step(none, x, t, s, KEY, ())[0])(x_t, 0.5, 0.4))
    beta_tilde = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2) * (sigma_s / sigma_t) ** 2
    assert_allclose(x_s.var(), 0.25 * beta_tilde, rtol=0.04)
    assert_allclose(x_s.mean() ** 2 + 0.25 * beta_tilde, sigma_s**2, rtol=0.01)


@every_process
def test_time_grids(name: str) -> None:
    p = PROCESSES[name]
    grids = {"uniform": samplers.uniform, "quadratic": samplers.quadratic, "karras": partial(karras, p)}
    for start in (1.0, 0.6):
        times = {grid: np.asarray(make(12, start)) for grid, make in grids.items()}
        for grid, values in times.items():
            assert len(values) == 13, grid
            assert (values[0] == np.float32(start) or grid == "karras") and values[-1] == 0, grid
            assert (np.diff(values) < 0).all(), grid
        assert_allclose(np.diff(times["uniform"]), -start / 12, rtol=1e-5)
        assert_allclose(times["quadratic"][6], start / 4, rtol=1e-6)
        # Noise levels evenly spaced in n^(1 / 7), from that of the start, or 80, to 0.002 or the least that there is.
        alpha, sigma = amplitudes(p, 1e-6)
        least = max(0.002, sigma / alpha) ** (1 / 7)
        alpha, sigma = amplitudes(p, times["karras"][:-1])
        noise = (np.asarray(sigma) / np.asarray(alpha)) ** (1 / 7)
        assert_allclose(np.diff(noise), (least - noise[0]) / 11, rtol=5e-3)
        assert_allclose(noise[-1], least, rtol=1e-3)
        alpha, sigma = amplitudes(p, start)
        assert_allclose(noise[0], min(sigma / alpha, 80) ** (1 / 7), rtol=1e-3)


def test_karras_ends_with_the_least_noise_that_the_process_knows() -> None:
    """As the processes of the configs do; their last steps would have no length, and DPM-Solver++ no slope."""
    p = log_linear(0.05, 20.0)
    times = np.asarray(karras(p, 12))
    assert times[-1] == 0 and (np.diff(times) < 0).all()
    alpha, sigma = amplitudes(p, times[-2])
    assert_allclose(sigma / alpha, 0.05, rtol=1e-3)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for make in (samplers.ddim, samplers.dpm_solver_2m):
        assert np.isfinite(run(make(p), gaussian_denoise(p, MEAN, DEVIATION), x, times, KEY)).all()


@pytest.mark.parametrize("num_steps", [4, 25])
def test_karras_knows_the_noise_below_a_chains_first_step(num_steps: int) -> None:
    """0.002 lies a ten-thousandth of the first step away from the datum, where there is no noise."""
    p = linear(25)
    times = np.asarray(karras(p, num_steps))
    assert times[-1] == 0 and (np.diff(times) < 0).all()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for make in (samplers.ddpm, samplers.dpm_solver_2m):
        assert np.isfinite(run(make(p), gaussian_denoise(p, MEAN, DEVIATION), x, times, KEY)).all()


@pytest.mark.parametrize("start", [1e-5, 1e-3, 0.02])
def test_karras_falls_from_a_start_of_little_noise_too(start: float) -> None:
    for p in (PROCESSES["linear"], log_linear()):
        times = np.asarray(karras(p, 4, start))
        assert times[0] == np.float32(start) and times[-1] == 0 and (np.diff(times) < 0).all()


def test_karras_leaves_out_levels_beyond_80() -> None:
    """The end of `cosine` at 20,291: Heun's steps from there would be wrong by a share of it."""
    p = PROCESSES["cosine"]
    alpha, sigma = amplitudes(p, karras(p, 12)[0])
    assert_allclose(sigma / alpha, 80, rtol=1e-3)
    start = np.random.default_rng(0).normal(size=(4096, 4)).astype(np.float32)
    x = run(samplers.heun(p), gaussian_denoise(p, MEAN, DEVIATION), start, karras(p, 20), KEY)
    assert_allclose(x.mean(axis=0), MEAN, atol=0.1)
    assert_allclose(x.std(axis=0), DEVIATION, rtol=0.15)


def test_a_step_of_no_length_changes_nothing_and_no_number_is_lost() -> None:
    p, x = PROCESSES["cosine"], np.ones((3, 4), np.float32)
    for make in (samplers.ddim, samplers.heun, samplers.dpm_solver_2m):
        x_s = run(make(p), gaussian_denoise(p, MEAN, DEVIATION), x, jnp.array([0.9, 0.5, 0.5, 0.2, 0.0]), KEY)
        assert np.isfinite(x_s).all()
    x_s = run(samplers.dpm_solver_2m(p), gaussian_denoise(p, MEAN, DEVIATION), x, jnp.array([0.9, 0.9]), KEY)
    assert_allclose(x_s, x, rtol=1e-6)


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_data_of_other_types_are_sampled_in_that_of_the_times(make: Callable[[Process], Sampler]) -> None:
    p = PROCESSES["linear"]
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int32):
        x = jnp.ones((2, 4), dtype)
        found, expected = (
            run(make(p), gaussian_denoise(p, MEAN, DEVIATION), one, samplers.uniform(5), KEY)
            for one in (x, x.astype(jnp.float32))
        )
        assert found.dtype == jnp.float32
        assert_array_equal(found, expected)


def test_who_shares_noise() -> None:
    p = PROCESSES["linear"]
    sampler, denoise = samplers.ddpm(p), gaussian_denoise(p, MEAN, DEVIATION)
    x, times = np.ones((5, 4), np.float32), samplers.uniform(5)
    shared = np.asarray(run(sampler, denoise, x, times, KEY))
    assert_array_equal(shared, shared[:1].repeat(5, axis=0))
    keys = jax.random.split(KEY, 5)
    own = np.asarray(run(sampler, denoise, x, times, keys))
    assert len(np.unique(own)) == own.size
    assert_allclose(run(sampler, denoise, x, times, keys[3])[:1], own[3:4], rtol=1e-6)
    # Every step has its own key.
    noisy = Sampler(lambda denoise, x, t, s, key, memory: (jnp.roll(x, 1).at[0, 0].set(jax.random.normal(key)), memory))
    assert len(np.unique(run(noisy, denoise, np.zeros((1, 5), np.float32), times, KEY))) == 5


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_samples_have_the_law_of_the_data(make: Callable[[Process], Sampler]) -> None:
    """From pure noise, within what 100 steps of first order leave (0.04 and 11 % here); each has its order's test above."""
    p = PROCESSES["cosine"]
    start = np.random.default_rng(0).normal(size=(4096, 4)).astype(np.float32)
    keys = jax.random.split(KEY, len(start))
    x = np.asarray(run(make(p), gaussian_denoise(p, MEAN, DEVIATION), start, samplers.uniform(100), keys))
    assert_allclose(x.mean(axis=0), MEAN, atol=0.1)
    assert_allclose(x.std(axis=0), DEVIATION, rtol=0.15)


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_network_evaluations(make: Callable[[Process], Sampler]) -> None:
    """As many a step as `evaluations` says, and none that counts at t = 0, where no denoiser is defined."""
    p, calls = PROCESSES["linear"], []
    sampler, exact = make(p), gaussian_denoise(p, MEAN, DEVIATION)

    def denoise(x: Array, t: Array) -> Prediction:
        calls.append(t)
        return jax.tree.map(lambda leaf: jnp.where(t > 0, leaf, jnp.nan), exact(x, t))

    x = run(sampler, denoise, np.ones((5, 4), np.float32), samplers.uniform(5), KEY)
    assert np.isfinite(x).all()
    assert len(calls) == sampler.evaluations
