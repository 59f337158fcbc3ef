"""The forward process: noise schedules, q(x_t | x_s), q(x_t | x_0) and the posterior q(x_s | x_t, x_0) for any s < t.

Every process is variance preserving, x_t = alpha(t) x_0 + sigma(t) eps with alpha^2 + sigma^2 = 1, and is known by its log
signal-to-noise ratio log_snr(t) = log(alpha^2 / sigma^2) alone (Kingma et al. 2021, "Variational Diffusion Models", eq. 3).
Time runs from t = 0, the datum itself (log_snr = +inf), to t = 1, (almost) pure noise. The paper's chain of T = 1000 steps
is such a process on the grid t = 0, 1/T, ..., 1; a shorter chain is a coarser grid, and no formula changes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.errors import InputError

MOST_LOG_SNR = 80


class Process(NamedTuple):
    """A variance-preserving forward process.

    log_snr: t in [0, 1], any shape -> log(alpha^2 / sigma^2), same shape; strictly decreasing, +inf at t = 0, finite at 1,
    and exact to the digits that t has: near t = 0 it cannot be found from 1 - alpha_bar, which has lost them in float32.
    """

    log_snr: Callable[[Array], Array]

    def alpha(self, t: Array) -> Array:
        """alpha(t) = sqrt(sigmoid(log_snr(t))), the amplitude of the signal."""
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t: Array) -> Array:
        """sigma(t) = sqrt(sigmoid(-log_snr(t))), the amplitude of the noise."""
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))


# --- schedules -------------------------------------------------------------------------------------------------------


def linear_betas(num_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> np.ndarray:
    """beta_1..beta_T, evenly spaced, float64 [T] (Ho et al. 2020, section 4)."""
    return np.linspace(beta_min, beta_max, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int = 1000, offset: float = 0.008) -> np.ndarray:
    """beta_t = min(1 - alpha_bar(t) / alpha_bar(t - 1/T), 0.999), alpha_bar(t) = cos^2((t + s) / (1 + s) pi / 2).

    float64 [T] (Nichol & Dhariwal 2021, eq. 17).
    """
    alpha_bar = np.cos((np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def chain(betas: np.ndarray) -> Process:
    """The discrete chain q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I), k = 1..T, at t = k / T.

    With L(t) = -log alpha_bar(t), L_k = -sum_{i<=k} log(1 - beta_i): log_snr = -log(expm1(L)). Between grid points L is
    interpolated linearly, that is, noise arrives at a constant rate within a step. betas: [T] in (0, 1).
    """
    table = np.concatenate([[0.0], -np.cumsum(np.log1p(-np.asarray(betas, np.float64)))])
    num_steps = len(betas)

    def log_snr(t: Array) -> Array:
        position = jnp.asarray(t) * float(num_steps)
        # k / T is no binary fraction: without this snap a grid point would be mixed with its neighbour. 0 itself is one, and
        # no small t is as 0, which has no noise.
        nearest = jnp.maximum(jnp.round(position), 1)
        position = jnp.where(jnp.abs(position - nearest) < 1e-3, nearest, position)
        low = jnp.clip(jnp.floor(position), 0, num_steps - 1).astype(int)
        values = jnp.asarray(table, position.dtype)
        weight = position - low
        return -jnp.log(jnp.expm1((1 - weight) * values[low] + weight * values[low + 1]))

    return Process(log_snr)


def linear(num_steps: int = 1000, beta_min: float | None = None, beta_max: float | None = None) -> Process:
    """The chain of `linear_betas` (Ho et al. 2020, section 4).

    beta_min, beta_max: by default those of 1,000 steps, 1e-4 and 0.02, times 1000 / num_steps, at most 0.999 (as in the
    published code of Nichol & Dhariwal 2021). So chains end with about as much noise, sigma / alpha = 157 with 1,000 steps
    and 220 with 100, but for short ones, whose last steps take nearly all that is left: 130,000 with 20 steps, 1,100 with 10,
    46 with three.
    """
    ends = (
        min(end * 1000 / num_steps, 0.999) if own is None else own for own, end in ((beta_min, 1e-4), (beta_max, 0.02))
    )
    return chain(linear_betas(num_steps, *ends))


def cosine(num_steps: int = 1000, offset: float = 0.008) -> Process:
    """The chain of `cosine_betas` (Nichol & Dhariwal 2021, eq. 17)."""
    return chain(cosine_betas(num_steps, offset))


def log_linear(noise_min: float = 0.002, noise_max: float = 80.0) -> Process:
    """sigma / alpha = noise_min^(1 - t) noise_max^t for t in (0, 1], and no noise at t = 0.

    The geometric noise levels of Song et al. 2021 ("Score-based generative modeling through stochastic differential
    equations", section 3.4, VE), rescaled by alpha(t) to preserve variance. The default ends are those of Karras et al. 2022
    ("EDM", table 1), whose x is ours divided by alpha(t).
    Raises InputError unless noise_min < noise_max.
    """
    if not noise_min < noise_max:
        raise InputError(f"noise_min: found {noise_min:g}, allowed is less than noise_max {noise_max:g}")
    low, high = math.log(noise_min), math.log(noise_max)

    def log_snr(t: Array) -> Array:
        t = jnp.asarray(t)
        return jnp.where(t > 0, -2 * (low + t * (high - low)), jnp.inf)

    return Process(log_snr)


def check_process(process: Process) -> None:
    """Raises InputError where log_snr is not +inf at t = 0, or does not fall from 80 or less to -80 or more on (0, 1].

    That is seen at 1,000 times. Beyond, float32 knows no inverse of alpha^2 or sigma^2.
    """
    t = np.linspace(0, 1, 1001)
    found = np.asarray(process.log_snr(jnp.asarray(t, jnp.float32)))
    if not found[0] == np.inf:
        raise InputError(f"config.process: log_snr is {found[0]:g} at t = 0, allowed is inf: no noise")
    wrong = ~(np.abs(found[1:]) <= MOST_LOG_SNR) | ~(found[1:] < found[:-1])
    if wrong.any():
        first = np.argmax(wrong)
        raise InputError(
            f"config.process: log_snr is {found[first]:g} at t = {t[first]:g} and {found[first + 1]:g} at {t[first + 1]:g}; "
            f"allowed are values that fall with t, from {MOST_LOG_SNR} or less to {-MOST_LOG_SNR} or more"
        )


def time_at(process: Process, log_snr: Array) -> Array:
    """The t in [0, 1] with process.log_snr(t) = log_snr, by bisection; same shape, clipped to [0, 1]."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = process.log_snr(middle) > log_snr
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    zeros = jnp.zeros_like(log_snr)
    low, high = jax.lax.fori_loop(0, 40, halve, (zeros, zeros + 1))
    return (low + high) / 2


# --- transitions -----------------------------------------------------------------------------------------------------


def expand(factor: Array, x: Array) -> Array:
    """A factor [] or [K], with trailing axes added so that it multiplies x of shape [K, ...]."""
    return factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim)) if factor.ndim else factor


def diffuse(process: Process, x_0: Array, t: Array, eps: Array) -> Array:
    """A draw of q(x_t | x_0): x_t = alpha(t) x_0 + sigma(t) eps (Ho et al. 2020, eq. 4). t: [] or [B]; eps like x_0."""
    return expand(process.alpha(t), x_0) * x_0 + expand(process.sigma(t), x_0) * eps


def transition(process: Process, x_s: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """Mean and variance of q(x_t | x_s), s < t: (alpha_t / alpha_s) x_s and sigma_t^2 (1 - SNR_t / SNR_s).

    With s, t neighbours of a chain these are sqrt(1 - beta_t) x_s and beta_t (Ho et al. 2020, eq. 2). s, t: [] or [B];
    the variance has their shape.
    """
    mean = expand(process.alpha(t) / process.alpha(s), x_s) * x_s
    return mean, transition_variance(process, s, t)


def transition_variance(process: Process, s: Array, t: Array) -> Array:
    """The variance of q(x_t | x_s): sigma_t^2 (1 - SNR_t / SNR_s), that is beta_t on the chain's own grid."""
    return process.sigma(t) ** 2 * -jnp.expm1(process.log_snr(t) - process.log_snr(s))


def posterior_variance(process: Process, s: Array, t: Array) -> Array:
    """The variance of q(x_s | x_t, x_0): sigma_s^2 (1 - SNR_t / SNR_s), that is beta_tilde_t on the chain's own grid."""
    return process.sigma(s) ** 2 * -jnp.expm1(process.log_snr(t) - process.log_snr(s))


def posterior(process: Process, x_0: Array, x_t: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """Mean and variance of q(x_s | x_t, x_0) for any 0 <= s < t <= 1 (Ho et al. 2020, eqs. 6-7).

    With r = SNR_t / SNR_s: mean = r (alpha_s / alpha_t) x_t + alpha_s (1 - r) x_0; for the variance see
    `posterior_variance`.
    s, t: [] or [B]; the variance has their shape. At s = 0 the mean is x_0 and the variance 0.
    """
    gap = process.log_snr(t) - process.log_snr(s)
    alpha_s, alpha_t = process.alpha(s), process.alpha(t)
    mean = expand(jnp.exp(gap) * alpha_s / alpha_t, x_t) * x_t + expand(alpha_s * -jnp.expm1(gap), x_t) * x_0
    return mean, posterior_variance(process, s, t)
