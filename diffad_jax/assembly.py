"""From a config to the pure functions of a run: process, network, loss, denoiser and score."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import losses, parametrisation, process, samplers, scores
from diffad_jax.build import build
from diffad_jax.errors import InputError
from diffad_jax.models import MLP, DiT, UNet
from diffad_jax.noise import gaussian
from diffad_jax.parametrisation import Denoise
from diffad_jax.patches import patchwise
from diffad_jax.process import Process, diffuse
from diffad_jax.training import Loss, Params

Choices = dict[str, Callable[..., Any]]

PROCESSES: Choices = {"linear": process.linear, "cosine": process.cosine, "log_linear": process.log_linear}
MODELS: Choices = {"UNet": UNet, "DiT": DiT, "MLP": MLP}
SAMPLERS: Choices = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpm_solver_2m": samplers.dpm_solver_2m,
}
DECODERS: Choices = {
    "gaussian_decoder": losses.gaussian_decoder,
    "discretised_gaussian_decoder": losses.discretised_gaussian_decoder,
}
SCORES: Choices = {
    "reconstruction": scores.reconstruction,
    "one_step": scores.one_step,
    "encode_decode": scores.encode_decode,
    "bound": scores.bound,
}


class System(NamedTuple):
    """The pure parts of a run, for data of one shape."""

    process: Process
    init: Callable[[Array], Params]
    """key -> parameters."""
    loss: Loss
    held_out_loss: Loss
    """The loss without dropout."""
    denoise: Callable[[Params], Denoise]
    sampler: samplers.Sampler
    score: scores.Score
    shape: tuple[int, ...]
    """Of one datum as the network sees it: a patch where config.pipeline.crop is set."""


def assemble(config: ConfigDict, shape: tuple[int, ...]) -> System:
    """Builds what config.process, model, denoiser, loss, sampler, decoder and score name, for data of the given shape.

    Raises InputError naming the key on unknown names and arguments.
    """
    chain = build("process", PROCESSES, config.process)
    learned_variance = config.denoiser.get("learned_variance", False)
    model: nn.Module = build("model", MODELS, config.model, learned_variance=learned_variance)
    sampler = build("sampler", SAMPLERS, config.sampler, process=chain)
    decoder = build("decoder", DECODERS, config.decoder)
    score = build("score", SCORES, config.score, process=chain, sampler=sampler, decoder=decoder)
    crop = config.get("pipeline", {}).get("crop", 0)
    if crop and shape[:2] != (crop, crop):
        score, shape = patchwise(score, crop, (shape[0], shape[1])), (crop, crop, *shape[2:])

    def denoiser(params: Params, clip: bool = True, **apply: Any) -> Denoise:
        def network(x: Array, t: Array) -> Array:
            return cast(Array, model.apply(params, x, t, **apply))

        spec = {"name": "make_denoise", **config.denoiser} | ({} if clip else {"clip": None})
        return build("denoiser", {"make_denoise": parametrisation.make_denoise}, spec, process=chain, network=network)

    make_loss: Choices = {"simple": simple_loss, "weighted": weighted_loss, "hybrid": hybrid_loss, "bound": bound_loss}
    sigma_data = config.denoiser.get("sigma_data", 1.0)
    objective = build("loss", make_loss, config.loss, process=chain, decoder=decoder, sigma_data=sigma_data)

    def loss(params: Params, x_0: Array, u: Array, keys: Array, train: bool = True) -> Array:
        split = jax.vmap(jax.random.split)(keys)
        # Where a prediction is clipped, no gradient would reach the network.
        denoise = denoiser(params, clip=False, train=train, rngs={"dropout": split[0, 1]})
        return objective(denoise, x_0, u, gaussian(split[:, 0], x_0))

    def init(key: Array) -> Params:
        return model.init(key, jnp.zeros((1, *shape)), jnp.ones(1))

    return System(chain, init, loss, partial(loss, train=False), denoiser, sampler, score, shape)


# --- objectives: (denoise, x_0 [B, ...], u [B], eps like x_0) -> [B] --------------------------------------------------

Objective = Callable[[Denoise, Array, Array, Array], Array]
GRID = 1000


def grid_time(u: Array, num_steps: int = GRID) -> Array:
    """u uniform in [0, 1) -> t uniform on the grid 1/T, 2/T, ..., 1."""
    return (jnp.floor(u * num_steps) + 1) / num_steps


def simple_loss(process: Process) -> Objective:
    """L_simple at times drawn from the grid (Ho et al. 2020, eq. 14)."""

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


def weighted_loss(
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
    Raises InputError unless focus are two ascending times (`ranges` keeps a config's in [0, 1]).
    Source: Karras et al. 2022, section 5, "loss weighting and sampling", where the levels are drawn from a log-normal.
    """
    if focus is not None and (len(focus) != 2 or not focus[0] < focus[1]):
        raise InputError(f"config.loss.focus: found {tuple(focus)}, allowed are two ascending times")

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u if focus is None else focused(u, focus[0], focus[1], focus_share))
        weights = losses.weight(process, t, weighting, gamma, sigma_data)
        return losses.weighted(denoise(diffuse(process, x_0, t, eps), t), x_0, weights)

    return objective


def hybrid_loss(
    process: Process, decoder: losses.Decoder, num_steps: int = GRID, bound_weight: float = 1e-3
) -> Objective:
    """L_simple + bound_weight L_vlb, with learned variance, see `losses.hybrid`."""

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u, num_steps)
        x_t = diffuse(process, x_0, t, eps)
        return losses.hybrid(process, denoise(x_t, t), x_0, x_t, eps, t, decoder, num_steps, bound_weight)

    return objective


def bound_loss(process: Process, decoder: losses.Decoder, num_steps: int = GRID, variance: str = "small") -> Objective:
    """The variational bound itself in bits/dim, estimated by num_steps times one term; see `losses.bound_term`."""

    def objective(denoise: Denoise, x_0: Array, u: Array, eps: Array) -> Array:
        t = grid_time(u, num_steps)
        x_t = diffuse(process, x_0, t, eps)
        term = losses.bound_term(process, denoise(x_t, t), x_0, x_t, t - 1 / num_steps, t, decoder, variance)
        return losses.bits_per_dim(num_steps * term, x_0.shape[1:])

    return objective
