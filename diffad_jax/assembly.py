"""From a config to the pure functions of a run: process, network, loss, denoiser and score."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import losses, objectives, process, samplers, scores
from diffad_jax.build import build, call, naming, within
from diffad_jax.errors import InputError
from diffad_jax.models import MLP, DiT, UNet
from diffad_jax.noise import gaussian
from diffad_jax.parametrisation import Denoise, make_denoise
from diffad_jax.patches import patchwise
from diffad_jax.process import Process
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
OBJECTIVES: Choices = {
    "simple": objectives.simple,
    "weighted": objectives.weighted,
    "hybrid": objectives.hybrid,
    "bound": objectives.bound,
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
    model: nn.Module
    """The network itself, which `denoise` calls."""
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


def _built(key: str, choices: Choices, kind: type, config: ConfigDict, **given: Any) -> Any:
    """What a section names; raises InputError as `build` does, and where that is of another kind."""
    found = build(key, choices, config[key], **given)
    if not isinstance(found, kind):
        name = config[key].name
        raise InputError(f"config.{key}.name: {name} gives {type(found).__name__}, needed is {kind.__name__}")
    return found


def assemble(config: ConfigDict, shape: tuple[int, ...]) -> System:
    """Builds what config.process, model, denoiser, loss, sampler, decoder and score name, for data of the given shape.

    Raises InputError naming the key on unknown names and arguments.
    """
    forward = _built("process", PROCESSES, Process, config)
    learned_variance = config.denoiser.get("learned_variance", False)
    model: nn.Module = build("model", MODELS, config.model, learned_variance=learned_variance)
    if learned_variance and not getattr(model, "learned_variance", False):
        raise InputError(f"config.denoiser.learned_variance: found True, but {config.model.name} has no such output")
    sampler = _built("sampler", SAMPLERS, samplers.Sampler, config, process=forward)
    decoder = build("decoder", DECODERS, config.decoder)
    size = math.prod(shape)
    given = {"process": forward, "sampler": sampler, "decoder": decoder, "size": size}
    score = _built("score", SCORES, scores.Score, config, **given)
    crop = config.get("pipeline", {}).get("crop", 0)
    if crop and shape[:2] != (crop, crop):
        score, shape = patchwise(score, crop, (shape[0], shape[1])), (crop, crop, *shape[2:])

    def denoiser(params: Params, clip: bool = True, **apply: Any) -> Denoise:
        def network(x: Array, t: Array) -> Array:
            return cast(Array, model.apply(params, x, t, **apply))

        section = {**config.denoiser} | ({} if clip else {"clip": None})
        return call("denoiser", make_denoise, section, process=forward, network=network)

    sigma_data = config.denoiser.get("sigma_data", 1.0)
    objective = build("loss", OBJECTIVES, config.loss, process=forward, decoder=decoder, sigma_data=sigma_data)

    def loss(params: Params, x_0: Array, u: Array, keys: Array, train: bool = True) -> Array:
        split = jax.vmap(jax.random.split)(keys)
        # Where a prediction is clipped, no gradient would reach the network.
        denoise = denoiser(params, clip=False, train=train, rngs={"dropout": split[0, 1]})
        return objective(denoise, x_0, u, gaussian(split[:, 0], x_0))

    def init(key: Array) -> Params:
        with within("config.model"), naming("model", type(model).__annotations__):
            variables = model.init(key, jnp.zeros((1, *shape)), jnp.ones(1))
        if others := set(variables) - {"params"}:
            raise InputError(
                f"config.model: {config.model.name} has {', '.join(sorted(others))}, allowed are params alone"
            )
        return variables

    return System(forward, model, init, loss, partial(loss, train=False), denoiser, sampler, score, shape)
