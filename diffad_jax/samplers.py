"""Reverse processes: one function per published algorithm, all driven by `sample`, the only scan over time.

A sampler is a pair of pure functions: `init(x)` makes its memory, `step(denoise, x_t, t, s, key, memory)` takes x_t to
x_s. To add one, write one function that returns a `Sampler`. Descending times denoise; ascending times turn a
deterministic sampler into its inversion; times that start below 1 reconstruct from partial noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffad_jax.errors import InputError, check_choice
from diffad_jax.noise import Key, fold_in, gaussian
from diffad_jax.parametrisation import VARIANCES, Denoise, reverse_log_variance
from diffad_jax.process import Process, posterior, posterior_variance, time_at


class Sampler(NamedTuple):
    """step(denoise, x_t, t, s, key, memory) -> (x_s, memory), and init(x) -> memory; t and s are scalars.

    Noise is drawn by `noise.gaussian(key, x_t)`, which knows all kinds of keys. A multistep method, which knows neither the
    first nor the last time, marks in its memory that there is no step before, as `dpm_solver_2m` does by a lambda of -inf.
    """

    step: Callable[[Denoise, Array, Array, Array, Key, Any], tuple[Array, Any]]
    init: Callable[[Array], Any] = lambda x: ()
    evaluations: int = 1
    """Network evaluations per step."""


def sample(sampler: Sampler, denoise: Denoise, x: Array, times: Array, key: Key) -> Array:
    """Carries x at times[0] through all times to times[-1], in one `lax.scan`.

    x: [B, ...]; times: [N + 1] in [0, 1], monotone, ascending ones from above 0, where no denoiser is defined; key: [] (all
    data share the noise, as scores want it; new samples want `jax.random.split(key, B)`, and B draws of x to begin with) or
    [B], new-style keys of `jax.random.key`. Returns x at times[-1].
    """

    x = x.astype(jnp.promote_types(x.dtype, times.dtype))  # else the first step would, which a scan refuses

    def body(carry: tuple[Array, Any], step: tuple[Array, Array, Array]) -> tuple[tuple[Array, Any], None]:
        number, t, s = step
        return sampler.step(denoise, carry[0], t, s, fold_in(key, number), carry[1]), None

    steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    (x, _), _ = jax.lax.scan(body, (x, sampler.init(x)), steps)
    return x


# --- time grids ------------------------------------------------------------------------------------------------------


def uniform(num_steps: int, start: float | Array = 1.0) -> Array:
    """num_steps + 1 evenly spaced times from start down to 0."""
    return start * jnp.linspace(1.0, 0.0, num_steps + 1)


def quadratic(num_steps: int, start: float | Array = 1.0) -> Array:
    """start (k / N)^2, k = N..0: denser near the datum (Song et al. 2021, "DDIM", appendix D.2)."""
    return start * jnp.linspace(1.0, 0.0, num_steps + 1) ** 2


def karras(
    process: Process,
    num_steps: int,
    start: float | Array = 1.0,
    noise_min: float = 0.002,
    noise_max: float = 80.0,
    rho: float = 7.0,
) -> Array:
    """The times of noise levels n = sigma / alpha evenly spaced in n^(1/rho), then 0 (Karras et al. 2022, eq. 5).

    noise_min: the last level but 0; where the process begins with more noise, as `log_linear` may, it is that, and where
    start has hardly more, half of start's. noise_max: the first level where start has more, which at such levels is as good
    as no other: the end of `cosine`, at 20,000, would take the steps of all that is seen.
    """
    noise_first, noise_start = (jnp.exp(-process.log_snr(jnp.asarray(t, jnp.float32)) / 2) for t in (1e-6, start))
    most = jnp.minimum(noise_start, noise_max)
    least = jnp.maximum(jnp.minimum(noise_min, most / 2), noise_first)
    ramp = jnp.linspace(0.0, 1.0, num_steps)
    noise = (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    times = jnp.append(time_at(process, -2 * jnp.log(noise)), 0.0)
    return times.at[0].set(jnp.where(noise_start > noise_max, times[0], start))


Grid = Callable[[Process, int, float | Array], Array]
"""(process, num_steps, start) -> num_steps + 1 times from start, or later where noise says no more, down to 0."""
GRIDS: dict[str, Grid] = {
    "uniform": lambda process, num_steps, start: uniform(num_steps, start),
    "quadratic": lambda process, num_steps, start: quadratic(num_steps, start),
    "karras": karras,
}


# --- algorithms ------------------------------------------------------------------------------------------------------


def ddpm(process: Process, variance: str = "small") -> Sampler:
    """Ancestral sampling: x_s ~ N(posterior mean with the predicted x_0, variance) (Ho et al. 2020, algorithm 2).

    variance: "small", "large" or "learned", see `reverse_log_variance`. The step to s = 0 adds no noise.
    Raises InputError on another variance.
    """
    check_choice("variance", variance, VARIANCES)

    def step(denoise: Denoise, x_t: Array, t: Array, s: Array, key: Key, memory: Any) -> tuple[Array, Any]:
        prediction = denoise(x_t, t)
        mean, _ = posterior(process, prediction.x_0, x_t, s, t)
        deviation = jnp.exp(0.5 * reverse_log_variance(process, prediction, s, t, variance))
        return mean + jnp.where(s > 0, deviation, 0.0) * gaussian(key, x_t), memory

    return Sampler(step)


def ddim(process: Process, eta: float = 0.0) -> Sampler:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) noise, v the posterior's variance.

    Song et al. 2021 ("DDIM"), eqs. 12 and 16. eta = 0 is deterministic and, run over ascending times, its own inversion;
    eta = 1 is `ddpm`. Raises InputError outside of [0, 1].
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta: found {eta}, allowed are numbers from 0 to 1")

    def step(denoise: Denoise, x_t: Array, t: Array, s: Array, key: Key, memory: Any) -> tuple[Array, Any]:
        prediction = denoise(x_t, t)
        mean = process.alpha(s) * prediction.x_0
        if eta == 0:
            return mean + process.sigma(s) * prediction.eps, memory
        variance = eta**2 * posterior_variance(process, s, t)
        direction = jnp.sqrt(jnp.maximum(process.sigma(s) ** 2 - variance, 0.0))
        return mean + direction * prediction.eps + jnp.sqrt(variance) * gaussian(key, x_t), memory

    return Sampler(step)


def heun(process: Process) -> Sampler:
    """Heun's second-order steps in (y = x / alpha, n = sigma / alpha), where dy/dn = eps (Karras et al. 2022, alg. 1).

    The last step, to s = 0, is Euler's. A step from very large n to one of the data's size goes wrong by a share of the
    former: from the end of `cosine`, or of `linear` with some 20 steps, few steps need the grid `karras`.
    """

    def step(denoise: Denoise, x_t: Array, t: Array, s: Array, key: Key, memory: Any) -> tuple[Array, Any]:
        alpha_s, noise_s = process.alpha(s), process.sigma(s) / process.alpha(s)
        gap = noise_s - process.sigma(t) / process.alpha(t)
        first = denoise(x_t, t)
        # Equal to x_t / alpha_t + gap eps, without the loss of digits where alpha_t is small.
        euler = first.x_0 + noise_s * first.eps
        # At s = 0 no denoiser is defined; the step is evaluated at t instead and thrown away.
        second = denoise(jnp.where(s > 0, alpha_s * euler, x_t), jnp.where(s > 0, s, t))
        corrected = euler + gap * (second.eps - first.eps) / 2
        return alpha_s * jnp.where(s > 0, corrected, euler), memory

    return Sampler(step, evaluations=2)


def dpm_solver_2m(process: Process) -> Sampler:
    """DPM-Solver++(2M), the second-order multistep solver in lambda = log_snr / 2 (Lu et al. 2022, algorithm 2).

    x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) D, D = x_0 + (h / 2 h_last) (x_0 - x_0_last), h = lambda_s - lambda_t.
    The first step, and the last to s = 0, are of first order.
    """

    def init(x: Array) -> tuple[Array, Array]:
        # A last step from infinitely far away has no weight.
        return jnp.zeros_like(x), jnp.full((), -jnp.inf, x.dtype)

    def step(denoise: Denoise, x_t: Array, t: Array, s: Array, key: Key, memory: Any) -> tuple[Array, Any]:
        last_x_0, last_lambda = memory
        x_0 = denoise(x_t, t).x_0
        lambda_t, lambda_s = process.log_snr(t) / 2, process.log_snr(s) / 2
        h = lambda_s - lambda_t
        # Times that a chain snaps to one point of its own make a step of no length.
        h_last = lambda_t - last_lambda
        slope = jnp.where((s > 0) & (h_last != 0), h / (2 * h_last), 0.0)
        target = x_0 + slope * (x_0 - last_x_0)
        x_s = process.sigma(s) / process.sigma(t) * x_t - process.alpha(s) * jnp.expm1(-h) * target
        return x_s, (x_0, lambda_t)

    return Sampler(step, init)
