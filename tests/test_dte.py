"""Diffusion time estimation against brute force, SciPy and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
from brute import brute_nearest
from numpy.testing import assert_allclose
from scipy.special import logsumexp  # type: ignore[import-untyped]
from scipy.stats import invgamma, norm  # type: ignore[import-untyped]

from diffad_jax import dte

RNG = np.random.default_rng(0)


def test_inverse_gamma_likelihood_is_that_of_scipy() -> None:
    variance, scale = RNG.uniform(0.01, 2, 50), RNG.uniform(0.1, 30, 50)
    for shape in (0.5, 2.0, 255.0):
        found = dte.inverse_gamma_nll(jnp.asarray(variance), shape, jnp.asarray(scale))
        assert_allclose(found, -invgamma.logpdf(variance, shape, scale=scale), rtol=2e-4, atol=2e-4)
        grid = np.linspace(1e-4, 60, 600_001)
        density = invgamma.logpdf(grid, shape, scale=scale[0])
        assert_allclose(dte.inverse_gamma_mode(shape, scale[0]), grid[density.argmax()], atol=2e-4)


def test_non_parametric_is_the_mode_of_the_brute_force_posterior() -> None:
    """With copies of one row as the bank all neighbours agree, and the posterior under a flat prior is known exactly."""
    dims, x_0 = 6, RNG.normal(size=6)
    x = x_0 + RNG.normal(size=(20, 6)) * np.linspace(0.1, 2, 20)[:, None]
    variance = np.geomspace(1e-4, 20, 200_000)
    log_likelihood = np.stack([norm.logpdf(d[:, None], scale=np.sqrt(variance)).sum(axis=0) for d in x - x_0])
    posterior = log_likelihood - logsumexp(log_likelihood, axis=1, keepdims=True)
    expected = variance[posterior.argmax(axis=1)]
    found = dte.non_parametric(x.astype(np.float32), np.tile(x_0, (9, 1)).astype(np.float32))
    assert_allclose(found, expected, rtol=1e-3)
    shape, scale = dte.gamma_shape(dims), ((x - x_0) ** 2).sum(axis=1) / 2
    assert_allclose(
        posterior[3] - posterior[3].max(), _centred(invgamma.logpdf(variance, shape, scale=scale[3])), atol=1e-9
    )


def _centred(log_density: np.ndarray) -> np.ndarray:
    return log_density - log_density.max()


def test_non_parametric_takes_the_mean_square_of_five_neighbours() -> None:
    bank, x = RNG.normal(size=(300, 5)).astype(np.float32), RNG.normal(size=(40, 5)).astype(np.float32)
    assert_allclose(dte.non_parametric(x, bank), (brute_nearest(x, bank, 5) ** 2).mean(axis=1) / 5, rtol=1e-4)


def test_noise_has_the_variance_of_its_step_and_bins_are_sevenths() -> None:
    assert dte.variances().shape == (300,) and 0.77 < dte.variances()[-1] < 0.79
    u = jnp.asarray([0.0, 0.5, 0.9999])
    x_0 = jnp.full((3, 20_000), 2.0)
    x_t, t = dte.add_noise(x_0, u, jax.random.split(jax.random.key(0), 3))
    assert t.tolist() == [0, 150, 299]
    assert_allclose(x_t.mean(axis=1), 2, atol=0.03)
    assert_allclose(x_t.var(axis=1), dte.variances()[np.asarray(t)], rtol=0.05)

    # With weights 0 the network says its bias: the loss tells the bin of t = 0, 150, 299.
    params = [(jnp.zeros((4, 7)), jnp.log(jnp.arange(1.0, 8.0) / 28))]
    loss = dte.categorical_loss(params, jnp.zeros((3, 4)), u, jax.random.split(jax.random.key(0), 3))
    assert_allclose(np.exp(-loss) * 28, [1, 4, 7], rtol=1e-5)
    assert_allclose(
        dte.categorical_score(params, jnp.zeros((1, 4))), [sum(k * (k + 1) for k in range(7)) / 28], rtol=1e-5
    )


def test_inverse_gamma_loss_is_least_at_the_true_scale() -> None:
    """For data at one point, |x|^2 / 2 is the scale; a network that says a constant does best near a fitted constant."""
    u, keys, x_0 = (jnp.arange(512) + 0.5) / 512, jax.random.split(jax.random.key(1), 512), jnp.zeros((512, 16))
    x_t, t = dte.add_noise(x_0, u, keys)

    def loss(f: float) -> float:
        return float(dte.inverse_gamma_loss([(jnp.zeros((16, 1)), jnp.full(1, f))], x_0, u, keys).mean())

    # The mean of -a log b + b / sigma^2 is least at b = a / mean(1 / sigma^2).
    best_scale = dte.gamma_shape(16) / (1 / dte.variances()[np.asarray(t)]).mean()
    least, middle = dte.variances()[0], 0.5 * np.log(dte.variances()[0] * dte.variances()[-1])
    best = np.log(np.expm1(best_scale / 8 - least)) - middle
    assert loss(best) < min(loss(best - 0.1), loss(best + 0.1))
    params = [(jnp.zeros((16, 1)), jnp.full(1, 0.3))]
    assert_allclose(dte.inverse_gamma_score(params, x_t[:2]), least + np.log1p(np.exp(0.3 + middle)), rtol=1e-5)


def test_three_columns_need_no_floor() -> None:
    x, bank = np.zeros((1, 3), np.float32), np.full((5, 3), 2.0, np.float32)
    assert_allclose(dte.non_parametric(x, bank), 12 / 3, rtol=1e-5)
