"""Diffusion time estimation: how much noise would a normal datum need to become this one? More = more anomalous.

A datum x is read as x_0 + sigma_t eps with x_0 a training normal, and the score says which t, or which variance sigma_t^2,
its posterior favours. Livernoche et al. 2024, "On diffusion modeling for anomaly detection" (ICLR), section 4: the process,
the bins, the neighbours and the categorical network's widths are those of the authors' code, with 300 steps for all (theirs
are 400 for the categorical one). Training is not (`methods.TIME_ESTIMATION`; theirs: 400 epochs in batches of 64 at a rate of
1e-4 with dropout 0.5, for the inverse gamma two layers of 128 without weight decay and with the scale f^2), nor is the
non-parametric score, the mode in closed form here and the best of the discrete t there, and data are whitened. An estimator
of our own, without a network as the non-parametric one, is in `nearness`.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln

from diffad_jax.neighbours import knn_distances
from diffad_jax.noise import gaussian
from diffad_jax.process import linear_betas

NUM_STEPS = 300
NUM_BINS = 7
NEIGHBOURS = 5

Params = list[tuple[Array, Array]]


# --- the process and the network ---------------------------------------------------------------------------------------


def variances() -> np.ndarray:
    """sigma_t^2 = 1 - prod_{i <= t} (1 - beta_i), t = 1..T, float64 [T]; beta evenly spaced from 1e-4 to 0.01."""
    return 1 - np.cumprod(1 - linear_betas(NUM_STEPS, 1e-4, 0.01))


def add_noise(x_0: Array, u: Array, keys: Array) -> tuple[Array, Array]:
    """x_t = x_0 + sigma_t eps, [B, D], and the step t in 0..T-1, int [B]; u [B] in [0, 1) places t, keys [B] draw eps.

    The mean does not shrink: only the variance tells the time (the process of the published code).
    """
    t = (u * NUM_STEPS).astype(int)
    sigma = jnp.sqrt(jnp.asarray(variances(), x_0.dtype))[t]
    return x_0 + sigma[:, None] * gaussian(keys, x_0), t


def init(key: Array, widths: Sequence[int]) -> Params:
    """Weights of a multilayer perceptron with the given layer widths, input and output included.

    Hidden layers as in He et al. 2015, eq. 10; the last starts at zero, so that training starts from no opinion.
    """
    *hidden, last = pairwise(widths)
    keys = jax.random.split(key, len(hidden))
    layers = [(jax.random.normal(k, s) * (2 / s[0]) ** 0.5, jnp.zeros(s[1])) for k, s in zip(keys, hidden)]
    return [*layers, (jnp.zeros(last), jnp.zeros(last[1]))]


def network(params: Params, x: Array) -> Array:
    """The perceptron with ReLU between its layers: [B, D] -> [B, outputs]."""
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


# --- categorical -------------------------------------------------------------------------------------------------------


def categorical_loss(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
    """-log p(bin(t) | x_t), bin(t) = floor(t K / T) with K = 7 bins of T = 300 steps: [B]."""
    x_t, t = add_noise(x_0, u, keys)
    log_p = jax.nn.log_softmax(network(params, x_t))
    return -jnp.take_along_axis(log_p, (t * NUM_BINS // NUM_STEPS)[:, None], axis=1)[:, 0]


def categorical_score(params: Params, x: Array) -> Array:
    """The expected bin sum_k k p(k | x), in [0, 6]: [B, D] -> [B]."""
    # As a sum: accelerators round the factors of a product.
    return (jax.nn.softmax(network(params, x)) * jnp.arange(NUM_BINS)).sum(axis=-1)


# --- inverse gamma -----------------------------------------------------------------------------------------------------


def gamma_shape(dims: int) -> float:
    """a = D / 2 - 1, the shape of p(sigma^2 | x) under a flat prior; at least 1/2, since for D <= 2 none is proper.

    p(sigma^2 | x, x_0) ~ N(x; x_0, sigma^2 I) = InvGamma(a, b) with b = |x - x_0|^2 / 2.
    """
    return max(dims / 2 - 1, 0.5)


def inverse_gamma_nll(variance: Array, shape: float, scale: Array) -> Array:
    """-log InvGamma(variance; a, b) = -a log b + log Gamma(a) + (a + 1) log variance + b / variance; arrays alike."""
    return -shape * jnp.log(scale) + gammaln(shape) + (shape + 1) * jnp.log(variance) + scale / variance


def inverse_gamma_mode(shape: float, scale: Array) -> Array:
    """The most probable variance b / (a + 1)."""
    return scale / (shape + 1)


def predicted_scale(params: Params, x: Array) -> Array:
    """b(x) = (D / 2) (sigma_1^2 + softplus(f(x) + log(sigma_1 sigma_T))), [B, D] -> [B].

    In the units of a variance, no less than the least, and about the geometric middle of the process where f = 0.
    """
    least, largest = variances()[[0, -1]]
    return x.shape[-1] / 2 * (least + jax.nn.softplus(network(params, x)[:, 0] + 0.5 * np.log(least * largest)))


def inverse_gamma_loss(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
    """-log InvGamma(sigma_t^2; D / 2 - 1, b(x_t)) a dimension: [B]."""
    x_t, t = add_noise(x_0, u, keys)
    variance = jnp.asarray(variances(), x_0.dtype)[t]
    dims = x_0.shape[-1]
    return inverse_gamma_nll(variance, gamma_shape(dims), predicted_scale(params, x_t)) / dims


def inverse_gamma_score(params: Params, x: Array) -> Array:
    """The mode of the predicted posterior of sigma^2: [B, D] -> [B]."""
    return inverse_gamma_mode(gamma_shape(x.shape[-1]), predicted_scale(params, x))


# --- non-parametric ----------------------------------------------------------------------------------------------------


def non_parametric(x: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """The mode b / (a + 1) of InvGamma(D / 2 - 1, b), b = (1 / 2k) sum_{i in kNN(x)} |x - x_i|^2, k = 5: [M, D] -> [M].

    At D >= 3 that is the mean squared distance to the neighbours, divided by D.
    """
    k = min(NEIGHBOURS, len(bank))
    scale = np.square(knn_distances(x, bank, k), dtype=np.float64).mean(axis=1) / 2
    return scale / (gamma_shape(bank.shape[1]) + 1)
