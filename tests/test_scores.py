"""The scores of Gaussian data, known in closed form, and what every score must be: its own datum's alone."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import PROCESSES, amplitudes, flow, gaussian_denoise, marginal_variance, negative_log_density
from jax import Array
from numpy.testing import assert_allclose
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from diffad_jax import assembly, samplers, scores
from diffad_jax.calibration import per_datum
from diffad_jax.errors import InputError
from diffad_jax.losses import gaussian_decoder
from diffad_jax.parametrisation import Denoise, Prediction
from diffad_jax.process import Process
from diffad_jax.samplers import Sampler
from diffad_jax.scores import Score

KEY = jax.random.key(3)
MEAN, DEVIATION = np.array([0.5, -1.0, 0.0]), np.array([0.3, 1.0, 0.8])


def maps(score: Score, denoise: Denoise, x_0: np.ndarray, key: Array = KEY) -> np.ndarray:
    return np.asarray(compiled_maps(score, denoise, x_0, key))


@partial(jax.jit, static_argnums=(0, 1))
def compiled_maps(score: Score, denoise: Denoise, x_0: Array, key: Array) -> Array:
    return score.maps(denoise, x_0, key)


# --- against closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "log_linear"])
def test_one_step_error_of_gaussian_data(name: str) -> None:
    """E |x_0 - x_0_theta|^2 = (sigma^2 d / v)^2 + (alpha sigma s^2 / v)^2, d = x_0 - mean, v = alpha^2 s^2 + sigma^2.

    In antithetic pairs what is linear in the noise cancels, so that the chance error is the same for every d.
    """
    p, dims, times, draws = PROCESSES[name], 4096, (0.2, 0.5), 16
    mean, deviation = np.tile(MEAN[1:], dims // 2), np.tile(DEVIATION[1:], dims // 2)
    x_0 = np.asarray(mean + np.array([[0.0], [4.0], [20.0]]) * deviation, np.float32)
    score = scores.one_step(p, times, draws)
    found = maps(score, gaussian_denoise(p, mean, deviation), x_0)
    for t, level in zip(times, found, strict=True):
        alpha, sigma = (np.asarray(a) for a in amplitudes(p, t))
        variance = np.asarray(marginal_variance(p, t, deviation))
        bias, spread = sigma**2 * (x_0 - mean) / variance, (alpha * sigma * deviation**2 / variance) ** 2
        error = np.sqrt((4 * spread**2).mean() / (dims * draws))
        chance = level - (bias**2 + spread).mean(axis=1)
        assert (np.abs(chance) < 4 * error).all()
        assert_allclose(chance, chance[0], atol=0.1 * error)
    assert score.evaluations == len(times) * draws


@pytest.mark.parametrize("make", [samplers.ddpm, partial(samplers.ddim, eta=0.5), samplers.ddim])
def test_the_mean_of_an_antithetic_pair_is_free_of_noise(make: Callable[[Process], Sampler]) -> None:
    """Of Gaussian data, whose denoiser is linear: also of the noise that a sampler adds on its way."""
    p, x_0 = PROCESSES["cosine"], np.asarray(MEAN + np.array([[0.0], [4.0], [20.0]]) * DEVIATION, np.float32)
    score = scores.reconstruction(p, make(p), (0.3,), num_steps=5, num_draws=2, bias=True)
    found = [maps(score, gaussian_denoise(p, MEAN, DEVIATION), x_0, jax.random.key(i)) for i in range(2)]
    (error, bias), (other_error, other_bias) = found
    assert_allclose(bias, other_bias, rtol=1e-3, atol=1e-6)
    assert not np.isclose(error, other_error, rtol=1e-3).any()


@pytest.mark.parametrize("grid", list(samplers.GRIDS))
@pytest.mark.parametrize("sampler", list(assembly.SAMPLERS))
@pytest.mark.parametrize("process", list(assembly.PROCESSES))
def test_float32_data_stay_so_where_jax_knows_float64(process: str, sampler: str, grid: str) -> None:
    p, x_0 = assembly.PROCESSES[process](), jnp.zeros((2, 3), jnp.float32)
    score = scores.reconstruction(p, assembly.SAMPLERS[sampler](p), (0.3,), 4, num_draws=2, bias=True, grid=grid)
    with jax.enable_x64(True):
        found = jax.eval_shape(partial(score.maps, lambda x, t: Prediction(x, x, x)), x_0, KEY)
    assert found.dtype == jnp.float32


def test_a_reconstruction_goes_back_in_even_steps() -> None:
    p, x_0 = PROCESSES["cosine"], np.zeros((1, 3), np.float32)
    sampler = Sampler(lambda denoise, x, t, s, key, memory: (x + (t - s) ** 2, memory))
    x_t, x = scores.reconstruct(p, sampler, gaussian_denoise(p, MEAN, DEVIATION), x_0, jnp.float32(0.4), 4, KEY)
    assert_allclose(x - x_t, 4 * 0.1**2, rtol=1e-4)


def test_a_reconstruction_goes_back_along_the_grid_that_is_asked_for() -> None:
    """The squares of the steps of 0.4 (k / 4)^2, from a sampler that adds those up."""
    p, x_0 = PROCESSES["cosine"], np.zeros((1, 3), np.float32)
    sampler = Sampler(lambda denoise, x, t, s, key, memory: (x + (t - s) ** 2, memory))
    arguments = (p, sampler, gaussian_denoise(p, MEAN, DEVIATION), x_0, jnp.float32(0.4), 4, KEY)
    x_t, x = scores.reconstruct(*arguments, "quadratic")
    assert_allclose(x - x_t, (np.diff(0.4 * (np.arange(5) / 4) ** 2) ** 2).sum(), rtol=1e-4)
    with pytest.raises(InputError, match="grid: found 'even'; allowed are uniform, quadratic, karras"):
        scores.reconstruction(p, sampler, grid="even")


def test_encode_decode_returns_gaussian_data() -> None:
    p, x_0 = PROCESSES["cosine"], np.array([[0.7, -2.0, 0.0], [0.0, 1.0, 1.5]], np.float32)
    denoise = gaussian_denoise(p, MEAN, DEVIATION)
    errors = np.array([maps(scores.encode_decode(p, (0.5,), steps), denoise, x_0)[0] for steps in (8, 16, 32)])
    assert (errors[1:] < 0.6 * errors[:-1]).all()
    assert errors[-1].max() < 0.01


def test_scores_that_need_two_steps_say_so() -> None:
    p = PROCESSES["cosine"]
    for score in (lambda: scores.encode_decode(p, num_steps=1), lambda: scores.bound(p, gaussian_decoder(), 1)):
        with pytest.raises(InputError, match="^num_steps: found 1, allowed for .* is 2 or more"):
            score()


def test_bound_is_above_and_near_the_negative_log_density() -> None:
    """The step to 0 and the shortest ones with beta_tilde for a variance cost under a nat a dimension."""
    p, x_0 = PROCESSES["linear"], np.asarray(MEAN + np.array([[0.0], [2.0], [5.0]]) * DEVIATION, np.float32)
    score, denoise = scores.bound(p, gaussian_decoder(), 100, "large"), gaussian_denoise(p, MEAN, DEVIATION)
    found = np.mean([maps(score, denoise, x_0, jax.random.key(i)) for i in range(8)], axis=0)
    gap = found[0] - negative_log_density(x_0, MEAN, DEVIATION)
    assert (gap > 0).all()
    assert (gap < 3).all()


SCORES = {
    "one_step": lambda p: scores.one_step(p, (0.4,), 4),
    "bias": lambda p: scores.one_step(p, (0.2, 0.4), 4, bias=True),
    "reconstruction": lambda p: scores.reconstruction(p, samplers.ddpm(p), (0.3, 0.5), 4, 3),
    "heun": lambda p: scores.reconstruction(p, samplers.heun(p), (0.4,), 3, 2, "l1"),
    "encode_decode": lambda p: scores.encode_decode(p, (0.5,), 4),
    "bound": lambda p: scores.bound(p, gaussian_decoder(), 20),
}


def test_ranks_of_few_columns_do_not_hang_on_the_draws() -> None:
    """With a denoiser that is no line: of one antithetic pairs alone take the noise out of the ranks."""
    p, x_0 = PROCESSES["log_linear"], np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)

    def denoise(x_t: Array, t: Array) -> Prediction:
        found = jnp.tanh(2 * x_t)
        return Prediction(found, (x_t - p.alpha(t) * found) / p.sigma(t))

    def agreement(num_draws: int | None) -> float:
        score = scores.reconstruction(p, samplers.ddim(p), (0.4,), 2, num_draws, size=6)
        one, other = (maps(score, denoise, x_0, jax.random.key(i))[0] for i in range(2))
        return float(spearmanr(one, other).statistic)

    assert agreement(None) > 0.99 > agreement(4)
    assert [scores.draws_for(size) for size in (1, 16, 21, 100, 512, 3072)] == [64, 64, 48, 10, 4, 4]


def test_every_score_that_a_config_may_name_stands_there() -> None:
    assert assembly.SCORES.keys() <= SCORES.keys()


@pytest.mark.parametrize("name", SCORES)
def test_farther_points_score_higher_whatever_their_company(name: str) -> None:
    p = PROCESSES["cosine"]
    score, exact = SCORES[name](p), gaussian_denoise(p, MEAN, DEVIATION)
    calls = []

    def denoise(x: Array, t: Array) -> Prediction:
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    x_0 = np.asarray(MEAN + np.array([[0.5], [2.0], [4.0], [8.0], [16.0]]) * DEVIATION, np.float32)
    scorer = jax.jit(lambda x: per_datum(score.maps(denoise, x, KEY)))
    levels = np.asarray(scorer(x_0))
    jax.effects_barrier()
    assert len(calls) == score.evaluations
    assert (np.diff(levels, axis=1) > 0).all()
    # Another order and other mates; then padding, with which batches of any size are filled up.
    order = np.array([3, 0, 0, 4, 1])
    assert_allclose(scorer(x_0[order]), levels[:, order], rtol=1e-6)
    assert_allclose(scorer(np.concatenate([x_0[:3], np.zeros((2, 3), np.float32)]))[:, :3], levels[:, :3], rtol=1e-6)


def test_draws_have_their_own_noise() -> None:
    """A denoiser that answers with eps scores the mean of eps^2, which narrows with n only where the pairs differ."""
    p, x_0 = PROCESSES["cosine"], np.zeros((1, 64), np.float32)

    def denoise(x_t: Array, t: Array) -> Prediction:
        return Prediction(x_t / p.sigma(t), x_t)

    score = scores.one_step(p, (0.5,), 64)
    found = [maps(score, denoise, x_0, jax.random.key(i))[0, 0] for i in range(3)]
    assert len(np.unique(found)) == 3
    assert_allclose(found, 1, atol=4 * np.sqrt(2 / (32 * 64)))


def test_error_is_bias_and_variance() -> None:
    """The exact denoiser of a Gaussian is affine in the noise, so that antithetic pairs leave its bias alone, exactly."""
    p, t = PROCESSES["cosine"], 0.4
    x_0 = np.asarray(MEAN + np.array([[1.0], [3.0]]) * DEVIATION, np.float32)
    found = maps(scores.one_step(p, (t,), 64, bias=True), gaussian_denoise(p, MEAN, DEVIATION), x_0)
    alpha, sigma = (float(a) for a in amplitudes(p, jnp.float32(t)))
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    bias = ((1 - gain * alpha) * (x_0 - MEAN)) ** 2
    assert_allclose(found[1], bias.mean(axis=-1), rtol=1e-3)
    variance = np.mean(np.broadcast_to((gain * sigma) ** 2, x_0.shape), axis=-1)
    assert_allclose(found[0] - found[1], variance, rtol=0.5)
    with pytest.raises(InputError, match="num_draws: found 1, bias=True needs 2"):
        scores.one_step(p, num_draws=1, bias=True)


def test_gradients_tell_the_direction_of_what_is_not_reconstructed() -> None:
    """A denoiser that answers 0 leaves the picture itself as bias."""
    p = PROCESSES["cosine"]
    x_0 = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)

    def denoise(x_t: Array, t: Array) -> Prediction:
        return Prediction(jnp.zeros_like(x_t), x_t)

    found = maps(scores.one_step(p, (0.3, 0.5), 2, bias=True, gradients=True), denoise, x_0)
    assert found.shape == (8, 2, 6, 5)
    bias, down, across = found[2:4], found[4:6], found[6:8]
    assert_allclose(bias, np.broadcast_to((x_0**2).mean(axis=-1), bias.shape), rtol=1e-5)
    assert_allclose(down[0, :, :-1], (np.diff(x_0, axis=1) ** 2).mean(axis=-1), rtol=1e-5)
    assert_allclose(across[1, :, :, :-1], (np.diff(x_0, axis=2) ** 2).mean(axis=-1), rtol=1e-5)
    assert (down[:, :, -1] == 0).all() and (across[..., -1] == 0).all()
    with pytest.raises(InputError, match="needs bias=True"):
        scores.one_step(p, gradients=True)
    with pytest.raises(InputError, match="needs pictures"):
        maps(scores.one_step(p, bias=True, gradients=True), denoise, x_0[:, 0, 0])


def test_colours_part_what_is_not_reconstructed() -> None:
    """A denoiser that answers 0 leaves the picture itself as error and bias."""
    p = PROCESSES["cosine"]
    x_0 = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)
    x_0[1] = x_0[1].mean(axis=-1, keepdims=True)

    def denoise(x_t: Array, t: Array) -> Prediction:
        return Prediction(jnp.zeros_like(x_t), x_t)

    def found(x_0: np.ndarray, colours: bool) -> np.ndarray:
        return maps(scores.one_step(p, (0.3, 0.5), 2, bias=True, gradients=True, colours=colours), denoise, x_0)

    parted, whole = found(x_0, True), found(x_0, False)
    assert (len(parted), len(whole)) == (24, 8)
    by_colour = parted.reshape(4, 2, 3, 2, 6, 5)  # kind, time, colour, picture
    assert_allclose(by_colour.sum(axis=2), 3 * whole.reshape(4, 2, 2, 6, 5), rtol=1e-4, atol=1e-6)
    red, green, blue = np.moveaxis(x_0, -1, 0)
    assert_allclose(by_colour[1, 0, 0], (red + green + blue) ** 2 / 3, rtol=1e-4, atol=1e-6)
    assert_allclose(by_colour[1, 1, 1], (red - blue) ** 2 / 2, rtol=1e-4, atol=1e-6)
    assert_allclose(by_colour[0, 0, 2], (2 * green - red - blue) ** 2 / 6, rtol=1e-4, atol=1e-6)
    assert by_colour[:, :, 1:, 1].max() < 1e-6, "a grey picture has no colours"
    grey = x_0[..., :1]
    assert_allclose(found(grey, True), found(grey, False))
    with pytest.raises(InputError, match="colours=True needs pictures"):
        maps(scores.one_step(p, colours=True), denoise, x_0[:, 0, 0])


def test_reconstruct_gives_both_pictures() -> None:
    """With shared noise, and the exact flow of what was noised for a reconstruction."""
    p, x_0 = PROCESSES["cosine"], np.asarray(MEAN + np.array([[1.0], [-1.0]]) * DEVIATION, np.float32)
    t, denoise = np.float32(0.3), gaussian_denoise(p, MEAN, DEVIATION)
    x_t, x = jax.jit(lambda x: scores.reconstruct(p, samplers.heun(p), denoise, x, jnp.float32(t), 40, KEY))(x_0)
    alpha, sigma = (np.asarray(a) for a in amplitudes(p, t))
    eps = (x_t - alpha * x_0) / sigma
    assert_allclose(eps[0], eps[1], rtol=1e-4)
    assert_allclose(x, flow(p, x_t, t, 0.0, MEAN, DEVIATION), atol=0.01)


# --- distances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 9, 11, 3), (2, 5, 9, 1)])
def test_ssim_is_the_brute_force_loop(shape: tuple[int, ...]) -> None:
    """The second picture is lower than the window, which shrinks to it."""
    x, noise = np.random.default_rng(0).uniform(-1, 1, (2, *shape))
    y, up, left = 0.7 * x + 0.3 * noise, min(7, shape[1]) // 2, min(7, shape[2]) // 2
    expected = np.zeros(shape)
    for b, i, j, c in np.ndindex(*shape):
        window = (b, slice(max(i - up, 0), i + up + 1), slice(max(j - left, 0), j + left + 1), c)
        u, v = x[window], y[window]
        numerator = (2 * u.mean() * v.mean() + 0.02**2) * (2 * ((u - u.mean()) * (v - v.mean())).mean() + 0.06**2)
        denominator = (u.mean() ** 2 + v.mean() ** 2 + 0.02**2) * (u.var() + v.var() + 0.06**2)
        expected[b, i, j, c] = 1 - numerator / denominator
    found = jax.jit(scores.ssim)(x, y)
    assert_allclose(found, expected.mean(axis=-1), atol=1e-5)


def test_distances() -> None:
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 2, 9, 11, 3)).astype(np.float32)
    for name, distance in scores.DISTANCES.items():
        assert_allclose(jax.jit(distance)(x, x), np.zeros((2, 9, 11)), atol=1e-6, err_msg=name)
    for u, v in ((x, y), (x[:, 0, 0], y[:, 0, 0])):
        assert_allclose(scores.l2(u, v), ((u - v) ** 2).mean(axis=-1), rtol=1e-5)
        assert_allclose(scores.l1(u, v), np.abs(u - v).mean(axis=-1), rtol=1e-5)
    with pytest.raises(InputError, match=r"distance 'ssim' needs pictures"):
        scores.ssim(x[:, 0, 0], y[:, 0, 0])
    with pytest.raises(InputError, match=r"distance: found 'psnr'; allowed are l2, l1, ssim"):
        scores.one_step(PROCESSES["linear"], distance="psnr")
