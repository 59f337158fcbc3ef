"""Anomaly scores: what a denoiser trained on normal data says of a datum. Higher = more anomalous.

A score is a pure function (denoise, x_0 [B, ...], key) -> maps [L, B, H, W] for pictures, [L, B] for vectors (and for
scores that have no map), one slice for each of its L levels. With one key, a datum's score depends on the datum, the
denoiser and the key alone: all data see the same noise. `calibration` makes one number a datum of them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax import samplers
from diffad_jax.errors import InputError, check_choice
from diffad_jax.losses import Decoder
from diffad_jax.losses import bound as variational_bound
from diffad_jax.noise import Key, Mirrored, fold_in, gaussian
from diffad_jax.parametrisation import VARIANCES, Denoise
from diffad_jax.process import Process, diffuse


class Score(NamedTuple):
    """maps(denoise, x_0, key) -> [L, B, ...], a slice a level, and how often it calls the denoiser for one datum.

    signed: whether maps may be negative, so that no logarithm can be taken of them.
    """

    maps: Callable[[Denoise, Array, Array], Array]
    evaluations: int
    signed: bool = False


# --- distances: (x, reconstruction), both [B, ..., C] -> [B, ...] -----------------------------------------------------


def l2(x: Array, y: Array) -> Array:
    """Mean squared difference over the last axis: [B, H, W, C] -> [B, H, W], [B, D] -> [B]."""
    return ((x - y) ** 2).mean(axis=-1)


def l1(x: Array, y: Array) -> Array:
    """Mean absolute difference over the last axis: [B, H, W, C] -> [B, H, W], [B, D] -> [B]."""
    return jnp.abs(x - y).mean(axis=-1)


def ssim(x: Array, y: Array, window: int = 7) -> Array:
    """1 - SSIM in a uniform window, for pictures in [-1, 1]: [B, H, W, C] -> [B, H, W] in [0, 2].

    SSIM = (2 mu_x mu_y + c_1)(2 cov + c_2) / ((mu_x^2 + mu_y^2 + c_1)(var_x + var_y + c_2)) with c = (0.01 R)^2, (0.03 R)^2,
    R = 2 the range (Wang et al. 2004, eq. 13). The window shrinks at the border, and to the picture where that is smaller.
    """
    _need_pictures(x, "distance 'ssim'")
    size = (1, min(window, x.shape[1]), min(window, x.shape[2]), 1)

    def local_mean(z: Array) -> Array:
        total = jax.lax.reduce_window(z, 0.0, jax.lax.add, size, (1, 1, 1, 1), "SAME")
        count = jax.lax.reduce_window(jnp.ones_like(z), 0.0, jax.lax.add, size, (1, 1, 1, 1), "SAME")
        return total / count

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x**2) - mean_x**2, local_mean(y**2) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c_1, c_2 = 0.02**2, 0.06**2
    similarity = (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
    similarity /= (mean_x**2 + mean_y**2 + c_1) * (var_x + var_y + c_2)
    return 1 - similarity.mean(axis=-1)


def squared_steps(x: Array) -> tuple[Array, Array]:
    """Squared differences from the next pixel down and across, [B, H, W, C] -> two of [B, H, W]; 0 at the far border.

    Raises InputError where x are no pictures.
    """
    _need_pictures(x, "gradients=True")
    down = jnp.pad(jnp.diff(x, axis=1), ((0, 0), (0, 1), (0, 0), (0, 0)))
    across = jnp.pad(jnp.diff(x, axis=2), ((0, 0), (0, 0), (0, 1), (0, 0)))
    return (down**2).mean(axis=-1), (across**2).mean(axis=-1)


# Grey, red against blue, and green against both: the features of Ohta, Kanade and Sakai 1980 ("Color information for region
# segmentation", section 3), at unit length. They are about the principal axes of the colours of natural pictures.
OPPONENT_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])


def opponent_colours(x: Array) -> tuple[Array, ...]:
    """Pictures [B, H, W, 3] as three of [B, H, W, 1], whose squares have the same sum; those of one channel as they are.

    Raises InputError where x are no pictures.
    """
    _need_pictures(x, "colours=True")
    if x.shape[-1] != 3:
        return (x,)
    # "highest": accelerators otherwise round the factors of a product.
    turned = jnp.dot(x, OPPONENT_COLOURS.T.astype(x.dtype), precision="highest")
    return tuple(jnp.split(turned, 3, axis=-1))


def _need_pictures(x: Array, what: str) -> None:
    if x.ndim != 4:
        raise InputError(f"{what} needs pictures [B, H, W, C], found shape {x.shape}")


Distance = Callable[[Array, Array], Array]
DISTANCES: dict[str, Distance] = {"l2": l2, "l1": l1, "ssim": ssim}


def distance_named(name: str) -> Distance:
    """The distance of that name; raises InputError listing the names there are."""
    check_choice("distance", name, DISTANCES)
    return DISTANCES[name]


def _single(x: Array) -> Array:
    """Data in float32, or float64 where they are: levels of half precision would be others than were asked for."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# --- scores ----------------------------------------------------------------------------------------------------------


def reconstruct(
    process: Process,
    sampler: samplers.Sampler,
    denoise: Denoise,
    x_0: Array,
    t: Array,
    num_steps: int,
    key: Key,
    grid: str = "uniform",
) -> tuple[Array, Array]:
    """Noises x_0 [B, ...] to time t, [] in (0, 1], and denoises it: (x_t, reconstruction), both like x_0.

    The reverse process starts at t itself, not at pure noise, over num_steps of a grid of `samplers.GRIDS`; key draws the
    noise of x_t and of the sampler. Raises InputError on another grid.
    """
    check_choice("grid", grid, samplers.GRIDS)
    times = samplers.GRIDS[grid](process, num_steps, t).astype(x_0.dtype)
    x_t = diffuse(process, x_0, times[0], gaussian(fold_in(key, 0), x_0))
    return x_t, samplers.sample(sampler, denoise, x_t, times, fold_in(key, 1))


def mean_over_draws(
    drawn: Callable[[Key], Array], compared: Callable[[Array], Array], like: Array, key: Array, num_draws: int
) -> tuple[Array, Array]:
    """(mean of compared(x), mean of x) over num_draws x = drawn(key'), whose keys come in antithetic pairs (`Mirrored`).

    like: an array of the shape and type of x, so that a network need not be traced to know them.
    """

    def add(total: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        x = drawn(Mirrored(fold_in(key, number // 2), 1 - 2.0 * (number % 2)))
        return (total[0] + compared(x), total[1] + x), None

    zeros = jax.tree.map(jnp.zeros_like, (jax.eval_shape(compared, like), like))
    (error, x), _ = jax.lax.scan(add, zeros, jnp.arange(num_draws))
    return error / num_draws, x / num_draws


def draws_for(size: int) -> int:
    """How many draws data of `size` values are scored by: an even number from 4 to 64, about 1024 / size.

    All data share them, and the few values that are drawn for a row of few columns rank rows by chance: of 6 to 16 columns
    the ranks of new normals under two keys correlate by 0.85 to 0.98 with four draws and by 0.99 and more with 64, as those
    of 512 columns do with four (docs/choices.md).
    """
    return 2 * min(32, max(2, 512 // size))


def reconstruction(
    process: Process,
    sampler: samplers.Sampler,
    times: Sequence[float] = (0.25,),
    num_steps: int = 10,
    num_draws: int | None = 1,
    distance: str = "l2",
    bias: bool = False,
    gradients: bool = False,
    colours: bool = False,
    grid: str = "uniform",
    size: int = 1,
) -> Score:
    """The paper's score: the distance between x_0 and its reconstruction from partial noise.

    For each level t* of `times`: mean over num_draws draws of d(x_0, denoised(alpha x_0 + sigma eps)); draws come in
    antithetic pairs eps, -eps (an odd last one alone), of a sampler's noise too, which takes its ups and downs out of the
    mean. All levels see the same draws. num_draws: None for `draws_for(size)`, size the number of values of a datum, which
    the program knows. num_steps = 1 with a deterministic sampler is the one-step denoising error, d(x_0, x_0_theta(x_t, t*)).
    bias: after the L levels of the error come L of d(x_0, mean of the draws' reconstructions): what is left when the share of
    the noise is averaged away (error = bias + variance where d is "l2").
    gradients: after those come L and L of the `squared_steps`, down and across, of b = x_0 - mean of the reconstructions.
    With |b|^2 their means over a window tell how strong, how fine and in which direction what is not reconstructed runs.
    colours: pictures of three channels are compared in each of the `opponent_colours` by itself, and three levels stand in
    place of each.
    grid: the times in between, "uniform", "quadratic" or "karras", see `samplers`.
    Raises InputError where bias is asked of a single draw, whose bias is the error, or gradients without bias.
    """
    measure = distance_named(distance)
    check_choice("grid", grid, samplers.GRIDS)
    num_draws = draws_for(size) if num_draws is None else num_draws
    if bias and num_draws < 2:
        raise InputError(f"num_draws: found {num_draws}, bias=True needs 2 or more")
    if gradients and not bias:
        raise InputError("gradients=True: they are those of the bias, which needs bias=True")

    def seen(x: Array) -> tuple[Array, ...]:
        return opponent_colours(x) if colours else (x,)

    def score(denoise: Denoise, x_0: Array, key: Array) -> Array:
        x_0 = _single(x_0)

        def compared(x: Array) -> Array:
            return jnp.stack([measure(a, b) for a, b in zip(seen(x_0), seen(x), strict=True)])

        def level(t: Array) -> tuple[Array, ...]:
            def drawn(key: Key) -> Array:
                return reconstruct(process, sampler, denoise, x_0, t, num_steps, key, grid)[1]

            error, mean = mean_over_draws(drawn, compared, x_0, key, num_draws)
            found = [error]
            if bias:
                found.append(compared(mean))
            if gradients:
                down, across = zip(*(squared_steps(part) for part in seen(x_0 - mean)), strict=True)
                found += [jnp.stack(down), jnp.stack(across)]
            return tuple(found)

        maps = jax.lax.map(level, jnp.asarray(times, x_0.dtype))
        return jnp.concatenate([each.reshape(-1, *each.shape[2:]) for each in maps])

    return Score(score, len(times) * num_draws * num_steps * sampler.evaluations)


def one_step(
    process: Process,
    times: Sequence[float] = (0.25,),
    num_draws: int = 8,
    distance: str = "l2",
    bias: bool = False,
    gradients: bool = False,
    colours: bool = False,
) -> Score:
    """The denoising error d(x_0, x_0_theta(x_t, t)) at each noise level of `times`; see `reconstruction`.

    A run's sampler plays no part in it.
    """
    return reconstruction(process, samplers.ddim(process), times, 1, num_draws, distance, bias, gradients, colours)


def encode_decode(
    process: Process, times: Sequence[float] = (0.25,), num_steps: int = 10, distance: str = "l2"
) -> Score:
    """Deterministic reconstruction: DDIM inversion up to t*, then DDIM back (Song et al. 2021, section 4.3). No noise.

    As in the published code, x_0 is taken to lie at the first time of the grid. The sampler is DDIM, whatever a run's is.
    Raises InputError on an unknown distance, and where num_steps is 1, which leaves no step to go up.
    """
    if num_steps < 2:
        raise InputError(f"num_steps: found {num_steps}, allowed for encode_decode is 2 or more")
    sampler, measure = samplers.ddim(process), distance_named(distance)

    def score(denoise: Denoise, x_0: Array, key: Array) -> Array:
        x_0 = _single(x_0)

        def level(t: Array) -> Array:
            down = samplers.uniform(num_steps, t).astype(x_0.dtype)
            x_t = samplers.sample(sampler, denoise, x_0, down[-2::-1], key)
            return measure(x_0, samplers.sample(sampler, denoise, x_t, down, key))

        return jax.lax.map(level, jnp.asarray(times, x_0.dtype))

    return Score(score, len(times) * (2 * num_steps - 1))


def bound(process: Process, decoder: Decoder, num_steps: int = 100, variance: str = "small") -> Score:
    """The variational bound on -log p(x_0) in nats per datum, over a chain of num_steps steps: [1, B].

    Raises InputError where num_steps is below 2 and on another variance. Source: `losses.bound`.
    """
    check_choice("variance", variance, VARIANCES)
    if num_steps < 2:
        raise InputError(f"num_steps: found {num_steps}, allowed for a bound is 2 or more")

    def score(denoise: Denoise, x_0: Array, key: Array) -> Array:
        return variational_bound(process, denoise, x_0, key, decoder, num_steps, variance)[0][None]

    return Score(score, num_steps, signed=True)
