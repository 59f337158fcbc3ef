"""The objectives against their definitions, and the bound against the exact likelihood of Gaussian data."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import tiny
from analytic import PROCESSES, amplitudes, gaussian_denoise, marginal_variance, negative_log_density
from jax import Array
from ml_collections import config_dict
from numpy.testing import assert_allclose

from diffad_jax import assembly, losses, objectives
from diffad_jax.build import build
from diffad_jax.errors import InputError
from diffad_jax.parametrisation import Prediction, make_denoise
from diffad_jax.process import Process, chain, diffuse, linear_betas

every_process = pytest.mark.parametrize("name", PROCESSES)
MEAN, DEVIATION = np.array([0.5, -1.0, 0.0]), np.array([0.3, 1.0, 0.8])


# --- the decoder and the divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("levels", [17, 256])
def test_probabilities_of_all_levels_sum_to_1(levels: int, x64: bool) -> None:
    with jax.enable_x64(x64):
        means = np.array([-30.0, -1.0, -0.31, 0.0, 0.9, 1.0, 4.0])[:, None]
        log_variances = np.array([-24.0, -9.0, -3.0, 0.0, 4.0, 12.0])
        values = np.linspace(-1, 1, levels)[:, None, None]
        log_p = np.asarray(jax.jit(losses.discretised_gaussian_decoder(levels))(values, means, log_variances))
        assert np.isfinite(log_p).all()
        assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-9 if x64 else 1e-4)


def test_probability_of_a_level() -> None:
    with jax.enable_x64(True):
        decoder = jax.jit(losses.discretised_gaussian_decoder(17))
        x, half = np.linspace(-1, 1, 17), 1 / 16
        for mean, deviation in [(0.2, 0.5), (-0.9, 0.05), (3.0, 0.1), (0.0, 20.0)]:
            low, high = (x - half - mean) / deviation, (x + half - mean) / deviation
            low[0], high[-1] = -np.inf, np.inf
            # Phi(high) - Phi(low) = Phi(-low) - Phi(-high): the difference is taken in the lower tail.
            low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
            exact = scipy.special.logsumexp(
                [scipy.special.log_ndtr(high), scipy.special.log_ndtr(low)], axis=0, b=[[1.0], [-1.0]]
            )
            ours = decoder(x, mean, 2 * np.log(deviation))
            assert_allclose(ours, exact, rtol=1e-8)


def test_far_tails_keep_a_slope() -> None:
    """A prediction that is a hundred deviations off is still told where to go."""
    decoder = losses.discretised_gaussian_decoder()
    slope = jax.jit(jax.vmap(jax.grad(lambda mean: decoder(jnp.float32(0.2), mean, jnp.float32(-9.2)))))
    assert_allclose(slope(np.array([-1.0, 0.2, 1.4])), np.array([1.2, 0, -1.2]) * np.exp(9.2), rtol=0.01, atol=1)


def test_gaussian_decoder_is_the_density() -> None:
    ours = losses.gaussian_decoder()(jnp.array([0.3, -2.0]), jnp.array([0.1, 1.0]), jnp.array([-1.0, 2.0]))
    assert_allclose(ours, scipy.stats.norm.logpdf([0.3, -2.0], [0.1, 1.0], np.exp([-0.5, 1.0])), rtol=1e-5)


@pytest.mark.parametrize("q", [(0.3, 0.5), (-2.0, 2.0), (0.1, 1.0)])
def test_normal_kl_is_the_integral(q: tuple[float, float]) -> None:
    p, q = scipy.stats.norm(0.1, 1.0), scipy.stats.norm(*q)
    integral, _ = scipy.integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), -25, 25, points=[0.0])
    ours = losses.normal_kl(q.mean(), 2 * jnp.log(q.std()), p.mean(), 2 * jnp.log(p.std()))
    assert_allclose(ours, integral, rtol=1e-5, atol=1e-7)


def test_normal_kl_of_near_equals_keeps_its_digits() -> None:
    d = np.array([1e-2, 1e-3, -1e-4])
    assert_allclose(losses.normal_kl(0.0, jnp.asarray(d, jnp.float32), 0.0, 0.0), d**2 / 4 + d**3 / 12, rtol=2e-3)


def test_bits_per_dim() -> None:
    assert_allclose(losses.bits_per_dim(jnp.array([0.0, 48 * np.log(2)]), (4, 4, 3)), [0, 1], rtol=1e-6)


# --- L_simple and its weightings --------------------------------------------------------------------------------------


@every_process
def test_weighted_losses_are_their_definitions(name: str) -> None:
    with jax.enable_x64(True):
        p, t, sigma_data, gamma = PROCESSES[name], np.array([0.05, 0.3, 0.6, 0.95]), 0.7, 5.0
        x_0, eps, output = np.random.default_rng(0).normal(size=(3, 4, 5, 2))

        @jax.jit
        def of(x_0: Array, eps: Array, output: Array, t: Array) -> tuple[Prediction, Array, dict[str, Array]]:
            prediction = make_denoise(p, lambda x, t: output)(diffuse(p, x_0, t, eps), t)
            weights = {w: losses.weight(p, t, w, gamma, sigma_data) for w in losses.WEIGHTINGS}
            ours = {name: losses.weighted(prediction, x_0, weight) for name, weight in weights.items()}
            return prediction, losses.simple(prediction, eps), ours

        prediction, simple, ours = of(x_0, eps, output, t)
        alpha, sigma = (np.asarray(a)[:, None, None] for a in amplitudes(p, t))
        n = sigma / alpha
        v, v_hat = alpha * eps - sigma * x_0, alpha * prediction.eps - sigma * prediction.x_0
        error = np.square(prediction.x_0 - x_0)
        definitions = {
            "eps": (output - eps) ** 2,
            "x_0": error,
            "v": (v_hat - v) ** 2,
            "edm": (n**2 + sigma_data**2) / (n * sigma_data) ** 2 * error,
            "min_snr": np.minimum(1 / n**2, gamma) * error,
        }
        for weighting, found in ours.items():
            assert_allclose(found, definitions[weighting].mean(axis=(1, 2)), rtol=1e-8, err_msg=weighting)
        assert_allclose(simple, definitions["eps"].mean(axis=(1, 2)), rtol=1e-8)


def test_losses_are_of_what_is_not_clipped_and_held_out_ones_of_the_whole_network() -> None:
    config = tiny.get_config("vectors")
    x_0, u = jnp.linspace(-0.9, 0.9, 40).reshape(8, 5), jnp.linspace(0.05, 0.95, 8)
    keys = jax.random.split(jax.random.key(0), 8)

    def of(clip: float | None, dropout: float, held_out: bool = False) -> tuple[Array, Array]:
        config.denoiser.clip, config.model.dropout = clip, dropout
        system = assembly.assemble(config, (5,))
        params = jax.tree.map(lambda p: p + 0.1, system.init(jax.random.key(1)))
        loss = system.held_out_loss if held_out else system.loss
        return jax.jit(jax.value_and_grad(lambda params: loss(params, x_0, u, keys).mean()))(params)

    config.denoiser = {"predicts": "eps", "clip": config_dict.placeholder(float)}
    with config.ignore_type():
        plain, clipped, thinned, held_out = of(None, 0.0), of(0.1, 0.0), of(None, 0.5), of(None, 0.5, held_out=True)
    jax.tree.map(assert_allclose, plain, clipped)
    jax.tree.map(assert_allclose, plain, held_out)
    assert abs(thinned[0] - plain[0]) > 1e-3


def trained_times(**options: object) -> np.ndarray:
    """The times at which `objectives.weighted` asks the denoiser, for 10,000 evenly spaced u."""
    asked: list[np.ndarray] = []

    def denoise(x_t: Array, t: Array) -> Prediction:
        asked.append(np.asarray(t))
        return Prediction(x_t, x_t, None)

    process, x_0 = PROCESSES["log_linear"], jnp.zeros((10_000, 1))
    objectives.weighted(process, 1.0, **options)(denoise, x_0, (jnp.arange(10_000) + 0.5) / 10_000, x_0)  # type: ignore[arg-type]
    return asked[0]


def test_training_happens_mostly_where_it_is_focused() -> None:
    even = trained_times()
    assert_allclose(even, trained_times(focus_share=0.0, focus=(0.4, 0.5)))
    assert_allclose(np.histogram(even, bins=10, range=(0.0005, 1.0005))[0], 1000)
    times = trained_times(focus=(0.4, 0.5), focus_share=0.75)
    assert_allclose(np.histogram(times, bins=10, range=(0.0005, 1.0005))[0], [250] * 4 + [7750] + [250] * 5, atol=1)
    assert_allclose(np.histogram(times, bins=10, range=(0.4005, 0.5005))[0], 775, atol=2)
    # u ascends and so do the times: a stratified batch stays stratified.
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.0, 0.3), (0.3, 1.0)])
def test_a_focus_may_reach_the_ends_of_time(ends: tuple[float, float], share: float) -> None:
    times = trained_times(focus=ends, focus_share=share)
    low, high = ends
    assert times.min() > 0 and times.max() <= 1
    inside = ((times > low) & (times <= high)).mean()
    assert_allclose(inside, share + (1 - share) * (high - low), atol=2e-3)


@pytest.mark.parametrize("focus", [(0.5, 0.5), (0.6, 0.4), (0.5,), (0.1, 0.2, 0.3)])
def test_a_focus_is_two_ascending_times(focus: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="^focus: found .* allowed are two ascending times"):
        objectives.weighted(PROCESSES["log_linear"], 1.0, focus=focus)


def test_bad_weighting_raises() -> None:
    with pytest.raises(InputError, match="weighting: found 'snr'; .*allowed are eps, x_0, v, edm, min_snr"):
        losses.weight(PROCESSES["linear"], jnp.ones(()), "snr")


# --- the bound --------------------------------------------------------------------------------------------------------


def expected_gap(
    monkeypatch: pytest.MonkeyPatch, p: Process, num_steps: int, variance: str, fraction: float | None = None
) -> float:
    """E[bound] - E[-log p(x_0)] - KL(q(x_1) || N(0, I)) over Gaussian data, with the exact denoiser.

    Every term is quadratic in x_0 and eps, so that the mean over x_0 = mean +- deviation and eps = +-1 is the expectation.
    """
    eps = np.array([[1.0], [-1.0], [1.0], [-1.0]]) * np.ones(3)
    x_0 = MEAN + np.array([[1.0], [1.0], [-1.0], [-1.0]]) * DEVIATION
    monkeypatch.setattr(losses, "gaussian", lambda key, x: eps)
    exact = gaussian_denoise(p, MEAN, DEVIATION, num_steps)

    def denoise(x_t: Array, t: Array) -> Prediction:
        prediction = exact(x_t, t)
        return prediction if fraction is None else prediction._replace(variance_fraction=fraction + 0 * x_t)

    decoder = losses.gaussian_decoder()
    total, _ = jax.jit(partial(losses.bound, p, denoise, decoder=decoder, num_steps=num_steps, variance=variance))(
        x_0, jax.random.key(0)
    )
    alpha, _ = amplitudes(p, 1.0)
    marginal = np.asarray(marginal_variance(p, 1.0, DEVIATION))
    prior = 0.5 * (marginal + (np.asarray(alpha) * MEAN) ** 2 - 1 - np.log(marginal)).sum()
    return np.asarray(total).mean() - negative_log_density(x_0, MEAN, DEVIATION).mean() - prior


@pytest.mark.parametrize(("name", "num_steps"), [("linear", 20), ("cosine", 2), ("log_linear", 7)])
def test_bound_with_exact_reverse_variance_is_the_likelihood(
    name: str, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exact mean and variance the reverse chain is the data's own, in any number of steps."""
    with jax.enable_x64(True):
        assert abs(expected_gap(monkeypatch, PROCESSES[name], num_steps, "learned")) < 1e-8


def test_bound_tightens_with_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With beta for the variance of every step the gap is positive and falls like 1 / num_steps, up to the next order."""
    with jax.enable_x64(True):
        gaps = [expected_gap(monkeypatch, PROCESSES["cosine"], n, "learned", fraction=1.0) for n in (40, 80, 160)]
        assert gaps[2] > 1e-6
        assert gaps[1] < 0.51 * gaps[0]
        assert gaps[2] < 0.51 * gaps[1]
        assert expected_gap(monkeypatch, PROCESSES["cosine"], 40, "small") > 0.1


def test_fixed_variances_stay_near_the_bound_however_fine_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variance of the step to the datum is at least half of what it should be, which costs (1 - log 2) / 2 nats each."""
    with jax.enable_x64(True):
        for variance in ("small", "large"):
            assert 0 < expected_gap(monkeypatch, PROCESSES["log_linear"], 1000, variance) < 3 * 0.25


def test_terms_of_the_bound() -> None:
    p, key = chain(linear_betas(10, 0.05, 0.3)), jax.random.key(1)
    x_0 = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    denoise = gaussian_denoise(p, MEAN, DEVIATION)
    total, terms = jax.jit(lambda x: losses.bound(p, denoise, x, key, losses.gaussian_decoder(), 10))(x_0)
    terms = np.asarray(terms)
    assert terms.shape == (11, 5)
    assert_allclose(total, terms.sum(axis=0), rtol=1e-6)
    alpha, sigma = (np.asarray(a) for a in amplitudes(p, 1.0))
    q = scipy.stats.norm(alpha * x_0, sigma)
    x = np.linspace(-9, 9, 4001)[:, None, None]
    integral = (q.pdf(x) * (q.logpdf(x) - scipy.stats.norm.logpdf(x))).sum(axis=(0, 2)) * (x[1, 0, 0] - x[0, 0, 0])
    assert_allclose(terms[0], integral, rtol=1e-4)
    assert (terms[:-1] >= 0).all()


def test_hybrid_trains_the_variance_alone_by_the_bound() -> None:
    p, num_steps, rng = PROCESSES["cosine"], 50, np.random.default_rng(0)
    decoder = losses.discretised_gaussian_decoder()
    x_0, eps, output = rng.uniform(-1, 1, (4, 6)), rng.normal(size=(4, 6)), rng.uniform(-0.8, 0.8, (4, 12))
    # The steps to 0 and from 1 are among them.
    t = np.array([1 / 50, 2 / 50, 30 / 50, 1.0], np.float32)

    def hybrid(output: Array, x_0: Array, eps: Array, t: Array) -> tuple[Array, tuple[Array, Array]]:
        x_t = diffuse(p, x_0, t, eps)
        prediction = make_denoise(p, lambda x, t: output, learned_variance=True)(x_t, t)
        loss = losses.hybrid(p, prediction, x_0, x_t, eps, t, decoder, num_steps, bound_weight=0.5)
        nats = losses.bound_term(p, prediction, x_0, x_t, t - 1 / num_steps, t, decoder, "learned")
        return loss.sum(), (loss, nats)

    gradient, (loss, nats) = jax.jit(jax.grad(hybrid, has_aux=True))(output, x_0, eps, t)
    gradient, nats = np.asarray(gradient), np.asarray(nats)
    simple = ((output[:, :6] - eps) ** 2).mean(axis=1)
    assert_allclose(loss, simple + 0.5 * num_steps * nats / (6 * np.log(2)), rtol=1e-5)
    # L_simple alone moves the mean, the bound alone the variance.
    assert_allclose(gradient[:, :6], (output[:, :6] - eps) / 3, rtol=1e-5, atol=1e-7)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[:, 6:]) > 1e-6).all()


# --- objectives ------------------------------------------------------------------------------------------------------


def off(x_t: Array, t: Array) -> Prediction:
    """A denoiser that sees nothing but noise."""
    return Prediction(jnp.zeros_like(x_t), x_t, jnp.full_like(x_t, 0.3))


def test_times_of_the_grid_are_never_0() -> None:
    assert_allclose(objectives.grid_time(jnp.array([0.0, 0.4999, 0.5, 1.0]), 2), [0.5, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("name", assembly.OBJECTIVES)
def test_the_exact_denoiser_has_the_least_loss(name: str) -> None:
    p, mean, deviation = PROCESSES["cosine"], np.zeros(3), np.full(3, 0.5)
    given = {"process": p, "decoder": losses.gaussian_decoder(), "sigma_data": 1.0}
    objective = jax.jit(build("loss", assembly.OBJECTIVES, {"name": name}, **given), static_argnums=0)
    x_0, eps = np.random.default_rng(0).normal(size=(2, 4096, 3)).astype(np.float32) * [[[0.5]], [[1.0]]]
    u = jnp.arange(4096) / 4096
    exact = gaussian_denoise(p, mean, deviation, num_steps=1000)

    def loss(scale: float) -> float:
        """With x_0 predicted `scale` times as large, and the noise that then remains."""

        def denoise(x_t: Array, t: Array) -> Prediction:
            found = exact(x_t, t)
            x_0 = scale * found.x_0
            return Prediction(x_0, (x_t - p.alpha(t)[:, None] * x_0) / p.sigma(t)[:, None], found.variance_fraction)

        return float(objective(denoise, x_0, u, eps).mean())

    assert loss(1.0) < min(loss(0.9), loss(1.1))


@pytest.mark.parametrize("weighting", ["edm", "min_snr"])
def test_the_weighted_objective_is_weighted_as_asked(weighting: str) -> None:
    p, x_0, u = PROCESSES["log_linear"], jnp.ones((4, 3)), jnp.array([0.1, 0.3, 0.6, 0.9])
    found = objectives.weighted(p, 0.5, weighting, gamma=3.0)(off, x_0, u, x_0)
    assert_allclose(found, losses.weight(p, objectives.grid_time(u), weighting, 3.0, 0.5), rtol=1e-5)


@every_process
def test_the_estimated_bound_is_the_term_of_its_step_however_a_device_rounds_times(name: str) -> None:
    p, num_steps, decoder = PROCESSES[name], 1000, losses.gaussian_decoder()
    x_0, t = jnp.ones((3, 2)), np.float32([1 / 1000, 2 / 1000, 1])
    x_t = diffuse(p, x_0, t, x_0)
    s = np.float32([0, 1 / 1000, 999 / 1000])
    term = losses.bound_term(p, off(x_t, t), x_0, x_t, s, t, decoder)
    for rounded in (t, np.nextafter(t, np.float32(0)), np.nextafter(t, np.float32(1))):
        found = losses.bound_estimate(p, off(x_t, t), x_0, x_t, rounded, decoder, num_steps)
        assert_allclose(found, num_steps * term / (2 * np.log(2)), rtol=2e-3)


@pytest.mark.parametrize("make", [objectives.hybrid, objectives.bound])
def test_bounds_are_trained_at_the_times_of_their_chain(make: Callable[..., objectives.Objective]) -> None:
    asked = []

    def denoise(x_t: Array, t: Array) -> Prediction:
        asked.append(t)
        return off(x_t, t)

    x_0 = jnp.ones((4, 3))
    make(PROCESSES["linear"], losses.gaussian_decoder(), num_steps=4)(
        denoise, x_0, jnp.array([0.0, 0.3, 0.6, 0.9]), x_0
    )
    assert_allclose(asked.pop(), [0.25, 0.5, 0.75, 1.0])


def test_the_bound_is_trained_with_the_variance_that_is_asked_for() -> None:
    p, x_0, eps, u = PROCESSES["linear"], jnp.ones((2, 3)), jnp.full((2, 3), 0.5), jnp.array([0.3, 0.9])
    t, decoder = objectives.grid_time(u, 4), losses.gaussian_decoder()
    x_t = diffuse(p, x_0, t, eps)
    found = objectives.bound(p, decoder, 4, "large")(off, x_0, u, eps)
    assert_allclose(found, losses.bound_estimate(p, off(x_t, t), x_0, x_t, t, decoder, 4, "large"), rtol=1e-5)
