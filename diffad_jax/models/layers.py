"""Layers shared by the backbones."""

import math
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from diffad_jax.errors import check_choice
from diffad_jax.models.ops import Coefficients, convolve, normalise, products


def timestep_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding [cos(n w_i), sin(n w_i)] of the step n = 1000 t - 1, w_i = 10000^(-i / (width / 2)).

    Args:
        t: [B], time in [0, 1]. Published networks count their 1000 steps from 0, hence the -1.
        width: number of features, even.

    Returns:
        [B, width], float32.

    Source: Vaswani et al. 2017, section 3.5, in the order used by Dhariwal & Nichol 2021.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = (1000.0 * t.astype(jnp.float32) - 1.0)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


REMAT = ("none", "blocks", "dots")
CONVOLVED = "convolved"  # the name under which a rematerialised block finds the results of its convolutions


def rematerialised(block: type[nn.Module], remat: str, **arguments: Any) -> Any:
    """A block that the backward pass computes again: not at all ("none"), whole ("blocks"), or but for products ("dots").

    Args:
        block: class of the module.
        remat: see above; "dots" keeps the results of products and convolutions with weights, which cost most time.
        arguments: of `flax.linen.remat`.

    Raises:
        InputError: there is no such way.
    """
    check_choice("remat", remat, REMAT)
    if remat == "none":
        return block
    known = jax.checkpoint_policies
    by_weights = known.save_from_both_policies(
        known.dots_with_no_batch_dims_saveable, known.save_only_these_names(CONVOLVED)
    )
    policy = by_weights if remat == "dots" else None
    return nn.remat(block, policy=policy, **arguments)


class Conv3x3(nn.Module):
    """3x3 convolution padded by one pixel on every side, also when strided, as published weights expect."""

    features: int
    stride: int = 1
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The convolution of x [B, H, W, C], and the bias [features] to add, which a normalisation does for free."""
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        convolved = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        return checkpoint_name(convolved, CONVOLVED), bias.astype(self.dtype)


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    return products(x, kernel)[0]


Dense = partial(nn.Dense, dot_general=_dot_general)


def fold(x: jax.Array, patch_size: int) -> jax.Array:
    """Patches into channels: [B, H, W, C] -> [B, H / p, W / p, p p C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch_size, width // patch_size, -1)


def unfold(x: jax.Array, patch_size: int) -> jax.Array:
    """The inverse of `fold`: [B, h, w, p p C] -> [B, h p, w p, C]."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, patch_size, patch_size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * patch_size, width * patch_size, -1)


@cache
def _by_group(groups: int) -> Coefficients:
    """The coefficients of a GroupNorm; one function for each number of groups, by which compiled programs are found."""

    def coefficients(mean: jax.Array, square: jax.Array, *parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
        gamma, beta, scale, shift, bias = parameters
        square = square + (2 * mean + bias) * bias
        mean = mean + bias

        both = jnp.stack([mean, square])
        by_group = both.reshape(2, len(mean), groups, -1).mean(-1)
        mean, square = jnp.repeat(by_group, both.shape[-1] // groups, axis=-1)
        variance = jnp.maximum(square - mean**2, 0.0)
        slope = gamma * jax.lax.rsqrt(variance + 1e-5) * (1.0 + scale)
        return slope, beta * (1.0 + scale) + shift + slope * (bias - mean)

    return coefficients


class GroupNorm(nn.Module):
    """Group normalisation, gamma (x - mean) / sqrt(variance + 1e-5) + beta, optionally times (1 + scale) plus shift.

    There are `groups` groups, or the largest divisor of `groups` that also divides the number of channels.
    Everything is folded into one affine map per example and channel, found in float32 from the means of x and x^2.

    Source: Wu & He 2018, equations 1, 2 and 6; the modulation is Dhariwal & Nichol 2021, equation 3.
    """

    groups: int = 32
    silu: bool = True
    residual: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        scale: jax.Array | float = 0.0,
        shift: jax.Array | float = 0.0,
        bias: jax.Array | float = 0.0,
    ) -> tuple[jax.Array, Any]:
        """Normalise x + bias, then apply SiLU where `silu` is set.

        Args:
            x: [B, H, W, C].
            scale, shift, bias: [B, C], [C] or a number.

        Returns:
            The result, and where `residual` is set x, for the branch that goes past this layer (see `ops.normalise`).
        """
        channels = x.shape[-1]
        gamma = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        parameters = (jnp.asarray(p, jnp.float32) for p in (gamma, beta, scale, shift, bias))
        return normalise(_by_group(math.gcd(self.groups, channels)), self.silu, self.residual, x, *parameters)
