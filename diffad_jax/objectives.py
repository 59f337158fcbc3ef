"""What a training step minimises: a loss of `losses` at noise levels that the step's u places.

Each function here builds an Objective and is what config.loss names.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from diffad_jax import losses
from diffad_jax.errors import InputError, check_choice
from diffad_jax.parametrisation import VARIANCES, Denoise
from diffad_jax.process import Process, diffuse

Objective = Callable[[Denoise, Array, Array, Array], Array]
"""(denoise, x_0 [B, ...], u [B] uniform in [0, 1), eps like x_0) -> loss [B]."""
GRID = 1000


def grid_time(u: Array, num_steps: int = GRID) -> Array:
    """u uniform in [0, 1) -> t uniform on the grid 1/T, 2/T, ..., 1; rounding may make a u of 1, which is t = 1 too."""
    return jnp.minimum(jnp.floor(u * num_steps) + 1, num_steps) / num_steps


def simple(process: Process) -> Objective:
    """L_simple (Ho et al. 2020, eq. 14) at times drawn from k / 1000, k = 1..1000, whatever steps a chain has."""

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u)
        return losses.simple(denoise(diffuse(process, x_0, t, eps), t), eps)

    return objective


def focused(u: Array, low: float, high: float, share: float) -> Array:
    """u uniform in [0, 1) -> `share` of it uniform in [low, high), the rest in [0, 1).

    The inverse of the distribution function (1 - share) t + share clip((t - low) / (high - low), 0, 1), which is piecewise
    linear and ascends, so that a stratified u remains so.
    """
    places = jnp.asarray([0.0, low, high, 1.0], u.dtype)
    return jnp.interp(u, (1 - share) * places + share * jnp.asarray([0.0, 0.0, 1.0, 1.0], u.dtype), places)


def weighted(
    process: Process,
    sigma_data: float,
    weighting: str = "edm",
    gamma: float = 5.0,
    focus: Sequence[float] | None = None,
    focus_share: float = 0.75,
) -> Objective:
    """w(t) |x_0 error|^2, see `losses.weight`.

    focus: the times [low, high) between which the share `focus_share` of the training happens, say those that the score asks
    for; the rest is even over all times, which samples are drawn through. By default all of it is.
    Raises InputError on another weighting and unless focus are two ascending times (`ranges` keeps a config's in [0, 1]).
    Source: Karras et al. 2022, section 5, "loss weighting and sampling", where the levels are drawn from a log-normal.
    """
    check_choice("weighting", weighting, losses.WEIGHTINGS)
    if focus is not None and (len(focus) != 2 or not focus[0] < focus[1]):
        raise InputError(f"focus: found {tuple(focus)}, allowed are two ascending times")

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u if focus is None else focused(u, focus[0], focus[1], focus_share))
        weights = losses.weight(process, t, weighting, gamma, sigma_data)
        return losses.weighted(denoise(diffuse(process, x_0, t, eps), t), x_0, weights)

    return objective


def hybrid(process: Process, decoder: losses.Decoder, num_steps: int = GRID, bound_weight: float = 1e-3) -> Objective:
    """L_simple + bound_weight L_vlb, with learned variance, see `losses.hybrid`."""

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u, num_steps)
        x_t = diffuse(process, x_0, t, eps)
        return losses.hybrid(process, denoise(x_t, t), x_0, x_t, eps, t, decoder, num_steps, bound_weight)

    return objective


def bound(process: Process, decoder: losses.Decoder, num_steps: int = GRID, variance: str = "small") -> Objective:
    """The variational bound itself in bits/dim, see `losses.bound_estimate`. Raises InputError on another variance."""
    check_choice("variance", variance, VARIANCES)

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u, num_steps)
        x_t = diffuse(process, x_0, t, eps)
        return losses.bound_estimate(process, denoise(x_t, t), x_0, x_t, t, decoder, num_steps, variance)

    return objective
