"""Gaussian data, for which everything is known in closed form: the exact denoiser and what follows from it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffad_jax import assembly
from diffad_jax.parametrisation import Denoise, Prediction
from diffad_jax.process import Process

PROCESSES = {name: make() for name, make in assembly.PROCESSES.items()}


@partial(jax.jit, static_argnums=0)
def amplitudes(p: Process, t: Array) -> tuple[Array, Array]:
    """alpha and sigma at t."""
    return p.alpha(t), p.sigma(t)


@partial(jax.jit, static_argnums=0)
def marginal_variance(p: Process, t: Array, deviation: ArrayLike) -> Array:
    """The variance of x_t where x_0 ~ N(mean, deviation^2)."""
    return (p.alpha(t) * deviation) ** 2 + p.sigma(t) ** 2


@partial(jax.jit, static_argnums=0)
def flow(p: Process, x_t: Array, t: Array, s: Array, mean: ArrayLike, deviation: ArrayLike) -> Array:
    """The exact probability flow: x_s keeps the distance from its mean in units of its standard deviation."""
    ratio = jnp.sqrt(marginal_variance(p, s, deviation) / marginal_variance(p, t, deviation))
    return p.alpha(s) * mean + ratio * (x_t - p.alpha(t) * mean)


def reverse_variance(p: Process, s: Array, t: Array, deviation: ArrayLike) -> Array:
    """The variance of q(x_s | x_t), by conditioning the joint Gaussian of x_s and x_t."""
    carried = p.alpha(t) / p.alpha(s)
    variance_s = marginal_variance(p, s, deviation)
    return variance_s - (carried * variance_s) ** 2 / marginal_variance(p, t, deviation)


def gaussian_denoise(p: Process, means: np.ndarray, deviations: np.ndarray, num_steps: int | None = None) -> Denoise:
    """The exact denoiser of N(means, diag(deviations^2)); means, deviations: [D], x_t: [B, D].

    With num_steps it also says the place of the exact reverse variance, from t to t - 1 / num_steps, between log beta_tilde
    and log beta; the step to 0 measures from the step above it, as `reverse_log_variance` does.
    """

    def denoise(x_t: Array, t: Array) -> Prediction:
        alpha, sigma, at = p.alpha(t)[..., None], p.sigma(t)[..., None], t[..., None]
        mean, deviation = jnp.asarray(means, x_t.dtype), jnp.asarray(deviations, x_t.dtype)
        standardised = (x_t - alpha * mean) / marginal_variance(p, at, deviation)
        fraction = None
        if num_steps is not None:
            s = at - 1 / num_steps
            s = jnp.where(s < 1e-6, 0.0, s)
            low, high = jnp.where(s > 0, s, at), jnp.where(s > 0, at, 2 * at)
            small = p.sigma(low) ** 2 * (1 - jnp.exp(p.log_snr(high) - p.log_snr(low)))
            large = p.sigma(at) ** 2 * (1 - jnp.exp(p.log_snr(at) - p.log_snr(s)))
            exact = reverse_variance(p, s, at, deviation)
            fraction = jnp.broadcast_to(jnp.log(exact / small) / jnp.log(large / small), x_t.shape)
        return Prediction(mean + alpha * deviation**2 * standardised, sigma * standardised, fraction)

    return denoise


def negative_log_density(x_0: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """-log N(x_0; mean, diag(deviation^2)), [B] nats."""
    standardised = (x_0 - mean) / deviation
    return (0.5 * standardised**2 + np.log(deviation) + 0.5 * np.log(2 * np.pi)).sum(axis=-1)
