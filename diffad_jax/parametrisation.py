"""What the network predicts: eps, x_0, v or the preconditioned F of EDM, and the variance of the reverse step.

Every network output becomes a `Prediction` here, once; losses, samplers and scores never ask which kind it was.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.errors import InputError, check_choice
from diffad_jax.process import Process, expand, posterior_variance, transition_variance


class Prediction(NamedTuple):
    """What a denoiser says of x_t.

    x_0, eps: like x_t, with x_t = alpha x_0 + sigma eps. variance_fraction: like x_t, in [0, 1] for a trained network, the
    place of the log variance between its bounds (`learned`), or None where the network does not predict it.
    """

    x_0: Array
    eps: Array
    variance_fraction: Array | None = None


Denoise = Callable[[Array, Array], Prediction]
"""(x_t [B, ...], t [] or [B]) -> Prediction."""

Network = Callable[[Array, Array], Array]
"""(input [B, ...], t [B]) -> output like the input, or with twice its last axis where the variance is learned."""

TINY = float(np.finfo(np.float32).tiny)
PREDICTS = ("eps", "x_0", "v", "edm")


def make_denoise(
    process: Process,
    network: Network,
    predicts: str = "eps",
    learned_variance: bool = False,
    sigma_data: float = 1.0,
    clip: float | None = None,
) -> Denoise:
    """Turns a raw network into a denoiser.

    predicts:
      "eps"  eps = F (Ho et al. 2020, eq. 11), x_0 = (x_t - sigma eps) / alpha;
      "x_0"  x_0 = F;
      "v"    x_0 = alpha x_t - sigma F (Salimans & Ho 2022, section 4: v = alpha eps - sigma x_0);
      "edm"  x_0 = c_skip y + c_out F(c_in y) with y = x_t / alpha, n = sigma / alpha, c_skip = sigma_data^2 / (n^2 +
             sigma_data^2), c_out = n sigma_data c_in, c_in = 1 / sqrt(n^2 + sigma_data^2) (Karras et al. 2022, table 1).
             With F = 0 this is the exact denoiser of N(0, sigma_data^2 I). The network gets t as all others do, in place of
             that table's c_noise = ln(n) / 4.
    learned_variance: the second half of the output's last axis is w, -1 where the log variance is its lower bound and 1 where
      it is the upper one; the fraction, v of Nichol & Dhariwal 2021, eq. 15, is (w + 1) / 2.
    clip: x_0 is clipped to [-clip, clip] and eps follows it; None not to. Losses are of what is not clipped.
    Raises InputError on another `predicts`; the denoiser does where the network's output has another shape than it asks for.
    """
    check_choice("predicts", predicts, PREDICTS)

    def denoise(x_t: Array, t: Array) -> Prediction:
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        # EDM's c_in y, written without the division by alpha, which is almost 0 at t = 1.
        scale = 1 / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
        output = network(x_t * scale if predicts == "edm" else x_t, jnp.broadcast_to(t, x_t.shape[:1]))
        copies = 2 if learned_variance else 1
        if output.shape != (needed := (*x_t.shape[:-1], copies * x_t.shape[-1])):
            raise InputError(f"config.model: gives {output.shape} for x_t of {x_t.shape}, needed is {needed}")
        fraction = None
        if learned_variance:
            output, between = jnp.split(output, 2, axis=-1)
            fraction = (between + 1) / 2
        if predicts == "eps":
            x_0, eps = (x_t - sigma * output) / alpha, output
        elif predicts == "x_0":
            x_0, eps = output, (x_t - alpha * output) / sigma
        elif predicts == "v":
            x_0, eps = alpha * x_t - sigma * output, sigma * x_t + alpha * output
        else:
            x_0 = (alpha * sigma_data**2 * scale * x_t + sigma * sigma_data * output) * scale
            eps = (sigma * scale * x_t - alpha * sigma_data * output) * scale
        if clip is not None:
            x_0 = jnp.clip(x_0, -clip, clip)
            eps = (x_t - alpha * x_0) / sigma
        return Prediction(x_0, eps, fraction)

    return denoise


VARIANCES = ("small", "large", "learned")


def reverse_log_variance(
    process: Process, prediction: Prediction, s: Array, t: Array, variance: str = "small"
) -> Array:
    """The log variance of p(x_s | x_t), broadcastable to x_t; s, t: [] or [B].

    "small" log beta_tilde, the posterior's; "large" log beta, the transition's (Ho et al. 2020, section 3.2); "learned"
    fraction log beta + (1 - fraction) log beta_tilde (Nichol & Dhariwal 2021, eq. 15). At s = 0 the posterior has no
    variance, and that of the step above, from 2t to t, stands in for it, but no less than sigma_t^2 / 2: on a fine grid of
    noise levels it tends to 0, while what x_t leaves open of x_0 does not. The same stands in for "large" there.
    Raises InputError on another `variance`, and on "learned" where the prediction has no fraction.
    """
    check_choice("variance", variance, VARIANCES)
    first = s <= 0
    lower, upper = jnp.where(first, t, s), jnp.where(first, jnp.minimum(2 * t, 1.0), t)
    # Times that a chain snaps to one point of its own make a step without noise, whose logarithm would be infinite.
    floor = jnp.where(first, process.sigma(t) ** 2 / 2, TINY)
    log_posterior = jnp.log(jnp.maximum(posterior_variance(process, lower, upper), floor))
    log_transition = jnp.log(jnp.maximum(transition_variance(process, s, t), floor))
    small = expand(log_posterior, prediction.x_0)
    if variance == "small":
        return small
    if variance == "large":
        # Ho et al.'s fixed large variance also takes the clipped posterior at the last step of the chain.
        return expand(jnp.where(first, log_posterior, log_transition), prediction.x_0)
    if prediction.variance_fraction is None:
        raise InputError("variance: found 'learned', which needs a network with config.denoiser.learned_variance=True")
    return small + prediction.variance_fraction * (expand(log_transition, prediction.x_0) - small)
