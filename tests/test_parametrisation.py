"""Every parametrisation says the same of a network that is right, and the variance keeps its bounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import PROCESSES, amplitudes, gaussian_denoise
from jax import Array
from numpy.testing import assert_allclose, assert_array_equal

from diffad_jax import parametrisation, process
from diffad_jax.errors import InputError
from diffad_jax.parametrisation import PREDICTS, Prediction, make_denoise

SIGMA_DATA = 0.7
S, T = np.array([0.0, 0.2, 0.799, 0.98]), np.array([1e-3, 0.3, 0.8, 1.0])
X_0, EPS = np.random.default_rng(0).normal(size=(2, 4, 6))
every_process = pytest.mark.parametrize("name", PROCESSES)
diffuse = partial(jax.jit, static_argnums=0)(process.diffuse)
posterior = partial(jax.jit, static_argnums=0)(process.posterior)
transition_variance = partial(jax.jit, static_argnums=0)(process.transition_variance)
reverse_log_variance = partial(jax.jit, static_argnums=(0, 4))(parametrisation.reverse_log_variance)


@pytest.mark.parametrize("predicts", PREDICTS)
@every_process
def test_exact_network_gives_exact_x_0_and_eps(name: str, predicts: str) -> None:
    """Inputs and targets are written in the papers' own variables; EDM's are y = x_t / alpha and n = sigma / alpha."""
    with jax.enable_x64(True):
        p = PROCESSES[name]
        alpha, sigma = (np.asarray(a)[:, None] for a in amplitudes(p, T))
        x_t = alpha * X_0 + sigma * EPS
        y, n = x_t / alpha, sigma / alpha
        c_skip, c_in = SIGMA_DATA**2 / (n**2 + SIGMA_DATA**2), 1 / np.sqrt(n**2 + SIGMA_DATA**2)
        target, given = {
            "eps": (EPS, x_t),
            "x_0": (X_0, x_t),
            "v": (alpha * EPS - sigma * X_0, x_t),
            "edm": ((X_0 - c_skip * y) / (n * SIGMA_DATA * c_in), c_in * y),
        }[predicts]

        @jax.jit
        def denoise(x_t: Array, t: Array, target: Array) -> tuple[Prediction, list[Array]]:
            seen: list[Array] = []
            network = lambda x, t: seen.extend((x, t)) or target  # noqa: E731
            return make_denoise(p, network, predicts, sigma_data=SIGMA_DATA)(x_t, t), seen

        prediction, (seen_x, seen_t) = denoise(x_t, T, target)
        assert_allclose(prediction.x_0, X_0, rtol=1e-6, atol=1e-9)
        assert_allclose(prediction.eps, EPS, rtol=1e-6, atol=1e-9)
        assert_allclose(seen_x, given, rtol=1e-9)
        assert_array_equal(seen_t, T)


@every_process
def test_edm_without_a_network_is_the_gaussian_denoiser(name: str) -> None:
    p = PROCESSES[name]
    zero = jax.jit(make_denoise(p, lambda x, t: 0 * x, "edm", sigma_data=SIGMA_DATA))(X_0, T)
    exact = jax.jit(gaussian_denoise(p, np.zeros(6), np.full(6, SIGMA_DATA)))(X_0, T)
    assert_allclose(zero.x_0, exact.x_0, rtol=1e-5)
    assert_allclose(zero.eps, exact.eps, rtol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_x_0_and_eps_compose_to_x_t(predicts: str, clip: float | None) -> None:
    p = PROCESSES["cosine"]
    x_t = diffuse(p, X_0, T, EPS)
    prediction = jax.jit(make_denoise(p, lambda x, t: jnp.tanh(2 * x) - 0.3, predicts, clip=clip))(x_t, T)
    assert_allclose(diffuse(p, prediction.x_0, T, prediction.eps), x_t, rtol=1e-4, atol=1e-5)
    assert (np.abs(prediction.x_0).max() <= 0.5) == (clip is not None)


@every_process
def test_learned_variance_lies_between_its_bounds(name: str) -> None:
    p = PROCESSES[name]
    logits = np.tile(np.linspace(-1, 1, 6, dtype=np.float32), (4, 1))
    network = lambda x, t: jnp.concatenate([x, logits], axis=-1)  # noqa: E731
    prediction = jax.jit(make_denoise(p, network, learned_variance=True))(X_0, T)
    assert_allclose(prediction.eps, X_0, rtol=1e-6)
    learned = np.asarray(reverse_log_variance(p, prediction, S, T, "learned"))
    small, large = np.asarray(posterior(p, X_0, X_0, S, T)[1]), np.asarray(transition_variance(p, S, T))
    assert_allclose(np.exp(learned[1:, 0]), small[1:], rtol=1e-3)
    assert_allclose(np.exp(learned[:, -1]), large, rtol=1e-3)
    # In between it rises evenly on the logarithmic scale.
    assert_allclose(learned, np.linspace(learned[:, 0], learned[:, -1], 6, axis=1), rtol=1e-5)
    assert (np.diff(learned, axis=1) > 0).all()


@every_process
def test_fixed_variances(name: str) -> None:
    p, prediction = PROCESSES[name], Prediction(X_0, EPS)
    s, t = S, np.array([0.01, 0.3, 0.8, 1.0])
    small = np.exp(reverse_log_variance(p, prediction, s, t, "small"))[:, 0]
    large = np.exp(reverse_log_variance(p, prediction, s, t, "large"))[:, 0]
    assert_allclose(small[1:], posterior(p, X_0, EPS, s, t)[1][1:], rtol=1e-5)
    assert_allclose(large[1:], transition_variance(p, s, t)[1:], rtol=1e-5)
    # The step to the datum borrows from the step above it, from 0.02 to 0.01, where grids are not too fine for that.
    _, above = posterior(p, X_0, EPS, np.full(4, 0.01), np.full(4, 0.02))
    expected = max(above[0], p.sigma(t)[0] ** 2 / 2)
    assert_allclose([small[0], large[0]], [expected] * 2, rtol=1e-5)


def test_a_step_of_no_length_has_no_noise_of_any_kind() -> None:
    """A chain snaps times that lie closer than a thousandth of its steps."""
    p = PROCESSES["linear"]
    t = jnp.float32(0.5)
    s = jnp.nextafter(t, jnp.float32(0))
    assert p.log_snr(s) == p.log_snr(t)
    for fraction in (0.0, 0.5, 1.0):
        prediction = Prediction(X_0, EPS, np.full_like(X_0, fraction))
        for variance in ("small", "large", "learned"):
            assert (np.exp(reverse_log_variance(p, prediction, s, t, variance)) < 1e-30).all()


def test_bad_names_raise() -> None:
    p, prediction = PROCESSES["linear"], Prediction(X_0, EPS)
    with pytest.raises(InputError, match=r"predicts: found 'score'; allowed are eps, x_0, v, edm"):
        make_denoise(p, lambda x, t: x, "score")
    with pytest.raises(InputError, match=r"variance: found 'fixed'; allowed are small, large, learned"):
        reverse_log_variance(p, prediction, S, T, "fixed")
    with pytest.raises(InputError, match="learned_variance=True"):
        reverse_log_variance(p, prediction, S, T, "learned")
