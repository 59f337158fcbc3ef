"""Layers shared by the backbones."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


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


def conv3x3(features: int, *, strides: int = 1, zero: bool = False, dtype: str = "float32", name: str) -> nn.Conv:
    """3x3 convolution padded by one pixel on every side, also when strided, as published weights expect."""
    kernel_init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (3, 3), strides=strides, padding=1, kernel_init=kernel_init, dtype=dtype, name=name)


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


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling by 2: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def downsample(x: jax.Array) -> jax.Array:
    """Mean over 2x2 squares: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class GroupNorm(nn.Module):
    """Group normalisation, gamma (x - mean) / sqrt(variance + 1e-5) + beta, optionally times (1 + scale) plus shift.

    There are `groups` groups, or the largest divisor of `groups` that also divides the number of channels.
    Everything is folded into one affine map per example and channel, found in float32 from the means of x and x^2.

    Source: Wu & He 2018, equations 1, 2 and 6; the modulation is Dhariwal & Nichol 2021, equation 3.
    """

    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
        """Normalise x [B, H, W, C]; scale and shift, given together, are [B, C]."""
        batch, channels = x.shape[0], x.shape[-1]
        gamma = self.param("scale", nn.initializers.ones, (channels,))
        beta = self.param("bias", nn.initializers.zeros, (channels,))
        groups = math.gcd(self.groups, channels)
        values = x.astype(jnp.float32)

        def group_mean(v: jax.Array) -> jax.Array:
            mean = v.mean((1, 2)).reshape(batch, groups, -1).mean(-1)
            return jnp.repeat(mean, channels // groups, axis=-1)

        mean = group_mean(values)
        variance = jnp.maximum(group_mean(values**2) - mean**2, 0.0)
        slope = gamma * jax.lax.rsqrt(variance + 1e-5)
        offset = beta - slope * mean
        if scale is not None and shift is not None:
            slope, offset = slope * (1.0 + scale), offset * (1.0 + scale) + shift
        return (values * slope[:, None, None] + offset[:, None, None]).astype(x.dtype)
