"""Training objectives: L_simple and its weightings, the variational bound term by term, and their hybrid.

Every loss is a value per datum, [B]. The bound is in nats per datum, `bound_estimate` in bits/dim.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffad_jax.errors import check_choice
from diffad_jax.noise import fold_in, gaussian
from diffad_jax.parametrisation import Denoise, Prediction, reverse_log_variance
from diffad_jax.process import Process, diffuse, posterior


def mean_per_datum(x: Array) -> Array:
    """The mean over all axes but the first: [B, ...] -> [B]."""
    return x.reshape(x.shape[0], -1).mean(axis=-1)


def sum_per_datum(x: Array) -> Array:
    """The sum over all axes but the first: [B, ...] -> [B]."""
    return x.reshape(x.shape[0], -1).sum(axis=-1)


def bits_per_dim(nats: Array, shape: tuple[int, ...]) -> Array:
    """Nats per datum of the given shape [...] -> bits per dimension."""
    return nats / (math.prod(shape) * math.log(2))


# --- L_simple and weightings -----------------------------------------------------------------------------------------


def simple(prediction: Prediction, eps: Array) -> Array:
    """L_simple = mean |eps - eps_theta(x_t, t)|^2, [B] (Ho et al. 2020, eq. 14)."""
    return mean_per_datum((prediction.eps - eps) ** 2)


Weighting = Callable[[Array, float, float], Array]
"""(snr, gamma, sigma_data) -> weights like snr."""
WEIGHTINGS: dict[str, Weighting] = {
    "eps": lambda snr, gamma, sigma_data: snr,
    "x_0": lambda snr, gamma, sigma_data: jnp.ones_like(snr),
    "v": lambda snr, gamma, sigma_data: snr + 1,
    "edm": lambda snr, gamma, sigma_data: snr + 1 / sigma_data**2,
    "min_snr": lambda snr, gamma, sigma_data: jnp.minimum(snr, gamma),
}


def weight(process: Process, t: Array, weighting: str = "eps", gamma: float = 5.0, sigma_data: float = 1.0) -> Array:
    """The weight w(t) that turns mean |x_0 - x_0_theta|^2 into the named loss, like t.

    "eps" SNR (L_simple: |eps error|^2 = SNR |x_0 error|^2); "x_0" 1; "v" SNR + 1 (Salimans & Ho 2022, section 4);
    "edm" SNR + 1 / sigma_data^2 (Karras et al. 2022, table 1); "min_snr" min(SNR, gamma) (Hang et al. 2023,
    section 3.4). Raises InputError on another name.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    return WEIGHTINGS[weighting](jnp.exp(process.log_snr(t)), gamma, sigma_data)


def weighted(prediction: Prediction, x_0: Array, weights: Array) -> Array:
    """w(t) mean |x_0 - x_0_theta(x_t, t)|^2, [B]; weights: [] or [B], from `weight`."""
    return weights * mean_per_datum((prediction.x_0 - x_0) ** 2)


# --- the variational bound -------------------------------------------------------------------------------------------


def normal_kl(mean_q: Array, log_variance_q: Array, mean_p: Array, log_variance_p: Array) -> Array:
    """KL(q || p) of diagonal Gaussians, elementwise, in nats.

    (1/2) (v_q / v_p - 1 - log(v_q / v_p) + (mean_q - mean_p)^2 / v_p), v the variances; its digits are kept where v_q is near
    v_p. Source: Kingma & Welling 2014, appendix B, of which this is the form for any p.
    """
    difference = log_variance_q - log_variance_p
    return 0.5 * (jnp.expm1(difference) - difference + (mean_q - mean_p) ** 2 * jnp.exp(-log_variance_p))


Decoder = Callable[[Array, Array, Array], Array]
"""(x_0, mean, log_variance) -> log p(x_0 | x_t) at the last step, elementwise, in nats."""


def gaussian_decoder() -> Decoder:
    """log N(x_0; mean, variance) = -(1/2) (log(2 pi variance) + (x_0 - mean)^2 / variance): the density, for vectors."""

    def log_density(x_0: Array, mean: Array, log_variance: Array) -> Array:
        return -0.5 * (math.log(2 * math.pi) + log_variance + (x_0 - mean) ** 2 * jnp.exp(-log_variance))

    return log_density


def discretised_gaussian_decoder(levels: int = 256) -> Decoder:
    """The probability of x_0's bin under N(mean, variance), for pictures of `levels` evenly spaced values in [-1, 1].

    log [Phi((x + h - mean) / sd) - Phi((x - h - mean) / sd)], h = 1 / (levels - 1); the outermost bins reach to infinity
    (Ho et al. 2020, eq. 13).
    """
    half = 1 / (levels - 1)

    def log_probability(x_0: Array, mean: Array, log_variance: Array) -> Array:
        inverse_sd = jnp.exp(-0.5 * log_variance)
        upper, lower = (x_0 - mean + half) * inverse_sd, (x_0 - mean - half) * inverse_sd
        # Both tails are mirrored to where Phi is small and log Phi exact, so that a bin far out in a tail keeps its digits.
        flip = lower > 0
        upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
        log_upper, log_lower = jax.scipy.stats.norm.logcdf(upper), jax.scipy.stats.norm.logcdf(lower)
        inside = log_upper + jnp.log(-jnp.expm1(jnp.minimum(log_lower - log_upper, -1e-7)))
        below = jax.scipy.stats.norm.logcdf((x_0 - mean + half) * inverse_sd)
        above = jax.scipy.stats.norm.logcdf(-(x_0 - mean - half) * inverse_sd)
        # The outermost bins start half a bin before the last value.
        return jnp.where(x_0 < -1 + half, below, jnp.where(x_0 > 1 - half, above, inside))

    return log_probability


def prior_term(process: Process, x_0: Array) -> Array:
    """L_T = KL(q(x_1 | x_0) || N(0, I)), [B] nats (Ho et al. 2020, eq. 5)."""
    t = jnp.ones((), x_0.dtype)
    log_variance = 2 * jnp.log(process.sigma(t))
    return sum_per_datum(normal_kl(process.alpha(t) * x_0, log_variance, jnp.zeros_like(x_0), jnp.zeros(())))


def bound_term(
    process: Process,
    prediction: Prediction,
    x_0: Array,
    x_t: Array,
    s: Array,
    t: Array,
    decoder: Decoder,
    variance: str = "small",
) -> Array:
    """One term of the bound, [B] nats: KL(q(x_s | x_t, x_0) || p(x_s | x_t)), or -log p(x_0 | x_t) where s = 0.

    L_{t-1} and L_0 of Ho et al. 2020, eq. 5. s, t: [] or [B].
    """
    log_variance = reverse_log_variance(process, prediction, s, t, variance)
    mean, _ = posterior(process, prediction.x_0, x_t, s, t)
    true_mean, _ = posterior(process, x_0, x_t, s, t)
    true_log_variance = reverse_log_variance(process, prediction, s, t, "small")
    divergence = sum_per_datum(normal_kl(true_mean, true_log_variance, mean, log_variance))
    return jnp.where(s <= 0, -sum_per_datum(decoder(x_0, mean, log_variance)), divergence)


def bound(
    process: Process,
    denoise: Denoise,
    x_0: Array,
    key: Array,
    decoder: Decoder,
    num_steps: int = 1000,
    variance: str = "small",
) -> tuple[Array, Array]:
    """The variational bound on -log p(x_0) and its terms (Ho et al. 2020, eq. 5), one noise draw a term.

    Returns the bound, [B] nats, and its terms, [num_steps + 1, B]: L_T, L_{T-1}, ..., L_0 of the chain t = k / num_steps.
    num_steps >= 2. key: [] or [B].
    """
    # Times of half precision would miss the chain's points.
    x_0 = x_0.astype(jnp.promote_types(x_0.dtype, jnp.float32))

    def term(_: None, k: Array) -> tuple[None, Array]:
        s, t = ((k - 1) / num_steps).astype(x_0.dtype), (k / num_steps).astype(x_0.dtype)
        x_t = diffuse(process, x_0, t, gaussian(fold_in(key, k), x_0))
        return None, bound_term(process, denoise(x_t, t), x_0, x_t, s, t, decoder, variance)

    _, terms = jax.lax.scan(term, None, jnp.arange(num_steps, 0, -1))
    terms = jnp.concatenate([prior_term(process, x_0)[None], terms])
    return terms.sum(axis=0), terms


def bound_estimate(
    process: Process,
    prediction: Prediction,
    x_0: Array,
    x_t: Array,
    t: Array,
    decoder: Decoder,
    num_steps: int,
    variance: str = "small",
) -> Array:
    """L_vlb but for its constant L_T, [B] bits/dim, by num_steps times its term at t = k / num_steps, k = 1..num_steps drawn
    uniformly (Nichol & Dhariwal 2021, eq. 4)."""
    s = (jnp.round(t * num_steps) - 1) / num_steps  # exactly 0 before the first step, however a device rounds t
    term = bound_term(process, prediction, x_0, x_t, s, t, decoder, variance)
    return bits_per_dim(num_steps * term, x_0.shape[1:])


def hybrid(
    process: Process,
    prediction: Prediction,
    x_0: Array,
    x_t: Array,
    eps: Array,
    t: Array,
    decoder: Decoder,
    num_steps: int = 1000,
    bound_weight: float = 1e-3,
) -> Array:
    """L_hybrid = L_simple + bound_weight L_vlb with learned variance, [B] (Nichol & Dhariwal 2021, eq. 16).

    L_vlb by `bound_estimate`. The mean is behind a stop-gradient, so that the bound trains the variance alone.
    """
    frozen = Prediction(
        jax.lax.stop_gradient(prediction.x_0), jax.lax.stop_gradient(prediction.eps), prediction.variance_fraction
    )
    estimate = bound_estimate(process, frozen, x_0, x_t, t, decoder, num_steps, "learned")
    return simple(prediction, eps) + bound_weight * estimate
