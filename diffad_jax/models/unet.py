"""The U-Net of Dhariwal & Nichol 2021 ("Diffusion models beat GANs on image synthesis"), without class labels."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffad_jax.errors import InputError, check_choice
from diffad_jax.models.attention import attention
from diffad_jax.models.layers import Conv3x3, Dense, GroupNorm, fold, rematerialised, timestep_embedding, unfold
from diffad_jax.models.ops import downsample, upsample


class ResBlock(nn.Module):
    """Residual block, conditioned on time between its two convolutions, that may also halve or double the picture."""

    features: int
    resample: Literal["none", "down", "up"] = "none"
    scale_shift: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, train: bool) -> jax.Array:
        """Map x [B, H, W, C] and the activated time embedding [B, E] to [B, H', W', features]."""
        changes: dict[str, Callable[[jax.Array], jax.Array]] = {"none": lambda h: h, "down": downsample, "up": upsample}
        resample = changes[self.resample]
        h, x = GroupNorm(self.norm_groups, residual=True, name="in_norm")(x)
        h, bias = Conv3x3(self.features, dtype=self.dtype, name="in_conv")(resample(h))
        x = resample(x)

        condition = Dense(self.features * (2 if self.scale_shift else 1), dtype=self.dtype, name="emb")(time)
        norm = GroupNorm(self.norm_groups, name="out_norm")
        if self.scale_shift:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h, _ = norm(h, scale, shift, bias)
        else:
            h, _ = norm(h, bias=bias + condition)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h, bias = Conv3x3(self.features, zero=True, dtype=self.dtype, name="out_conv")(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="skip")(x)
        return x + (h + bias)


class AttentionBlock(nn.Module):
    """Residual self-attention over the pixels."""

    num_heads: int = 1
    head_channels: int | None = None
    norm_groups: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to the same shape."""
        batch, height, width, channels = x.shape
        heads, rest = divmod(channels, self.head_channels) if self.head_channels else (self.num_heads, 0)
        if rest or channels % heads:
            raise InputError(
                f"num_heads={self.num_heads}, head_channels={self.head_channels}: {channels} channels do not divide"
            )
        h, x = GroupNorm(self.norm_groups, silu=False, residual=True, name="norm")(x)
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        # Published weights hold q, k, v one after the other within each head.
        q, k, v = jnp.split(qkv.reshape(batch, height * width, heads, -1), 3, axis=-1)
        h = attention(q, k, v).reshape(x.shape)
        return x + Dense(channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out")(h)


class UNet(nn.Module):
    """U-Net with residual blocks, time conditioning and self-attention.

    Attributes:
        channels: channels at full resolution, before multiplication.
        channel_multipliers: one a level; each further level halves the picture.
        num_blocks: residual blocks a level on the way down (one more on the way up).
        attention_factors: down-sampling factors 1, 2, 4, ... at which blocks are followed by attention;
            the middle of the network always has it.
        num_heads: attention heads, unless head_channels is set.
        head_channels: channels a head; the number of heads follows.
        scale_shift: time scales and shifts the normalised features (True) or is added before normalising (False).
            Where a group is one channel, as with 32 channels in 32 groups, its normalisation removes what was added.
        patch_size: pixels a side that are folded into channels before the first convolution and unfolded after the last; 2
            makes the network about four times as fast (Luhman & Luhman 2022, "Improving diffusion model efficiency through
            patching").
        resample: "block", residual blocks halve and double the picture; "conv", single convolutions do.
        dropout: rate in [0, 1), active when train is True (needs a "dropout" key).
        norm_groups: groups of every GroupNorm. With one channel a group, the norm takes each channel's mean away; small
            networks want fewer groups than the published 32.
        remat: "none", "blocks" or "dots": what the backward pass computes again instead of keeping, see `rematerialised`.
        learned_variance: double the output channels: the prediction, then where between its bounds the log variance lies.
        dtype: compute type; parameters, normalisations and softmax stay in float32.

    Source: Dhariwal & Nichol 2021, section 3; the down-sampling path of Ho et al. 2020, appendix B.
    """

    channels: int = 32
    channel_multipliers: Sequence[int] = (1, 2, 2)
    num_blocks: int = 1
    attention_factors: Sequence[int] = ()
    num_heads: int = 1
    head_channels: int | None = None
    scale_shift: bool = True
    patch_size: int = 1
    resample: Literal["block", "conv"] = "block"
    dropout: float = 0.0
    norm_groups: int = 32
    remat: str = "none"
    learned_variance: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        """Map x_t [B, H, W, C] at times t [B] in [0, 1] to [B, H, W, C], or [B, H, W, 2 C] with learned_variance.

        Raises:
            InputError: H or W cannot be halved at every level, attention_factors names no level, or resample is unknown.
        """
        last_level = len(self.channel_multipliers) - 1
        multiple = self.patch_size * 2**last_level
        if x_t.ndim != 4 or x_t.shape[1] % multiple or x_t.shape[2] % multiple:
            raise InputError(f"x_t: found shape {x_t.shape}, need [B, H, W, C] with H and W multiples of {multiple}")
        factors = [2**level for level in range(last_level + 1)]
        if not set(self.attention_factors) <= set(factors):
            raise InputError(f"attention_factors: found {tuple(self.attention_factors)}, allowed are some of {factors}")
        check_choice("resample", self.resample, ("block", "conv"))

        residual = partial(
            rematerialised(ResBlock, self.remat, static_argnums=(3,)),
            scale_shift=self.scale_shift,
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            dtype=self.dtype,
        )
        self_attention = partial(
            rematerialised(AttentionBlock, self.remat), self.num_heads, self.head_channels, self.norm_groups, self.dtype
        )
        by_block = self.resample == "block"

        def conv(h: jax.Array, features: int, *, stride: int = 1, zero: bool = False, name: str) -> jax.Array:
            h, bias = Conv3x3(features, stride, zero, self.dtype, name=name)(h)
            return h + bias

        time = timestep_embedding(t, self.channels)
        time = nn.silu(Dense(4 * self.channels, dtype=self.dtype, name="time_0")(time))
        time = nn.silu(Dense(4 * self.channels, dtype=self.dtype, name="time_2")(time))

        # Names follow the numbering of published checkpoints, so that `published.py` needs no second description.
        h = conv(fold(x_t, self.patch_size), self.channels * self.channel_multipliers[0], name="down_0_0")
        skips = [h]
        for level, multiplier in enumerate(self.channel_multipliers):
            for _ in range(self.num_blocks):
                name = f"down_{len(skips)}"
                h = residual(self.channels * multiplier, name=f"{name}_0")(h, time, train)
                if 2**level in self.attention_factors:
                    h = self_attention(name=f"{name}_1")(h)
                skips.append(h)
            if level < last_level:
                name = f"down_{len(skips)}_0"
                if by_block:
                    h = residual(h.shape[-1], "down", name=name)(h, time, train)
                else:
                    h = conv(h, h.shape[-1], stride=2, name=f"{name}_op")
                skips.append(h)

        h = residual(h.shape[-1], name="middle_0")(h, time, train)
        h = self_attention(name="middle_1")(h)
        h = residual(h.shape[-1], name="middle_2")(h, time, train)

        total = len(skips)
        for level in range(last_level, -1, -1):
            for _ in range(self.num_blocks + 1):
                name = f"up_{total - len(skips)}"
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(self.channels * self.channel_multipliers[level], name=f"{name}_0")(h, time, train)
                if has_attention := 2**level in self.attention_factors:
                    h = self_attention(name=f"{name}_1")(h)
            if level:
                name = f"{name}_{2 if has_attention else 1}"
                if by_block:
                    h = residual(h.shape[-1], "up", name=name)(h, time, train)
                else:
                    h = conv(upsample(h), h.shape[-1], name=f"{name}_conv")

        h, _ = GroupNorm(self.norm_groups, name="out_0")(h)
        outputs = x_t.shape[-1] * self.patch_size**2 * (2 if self.learned_variance else 1)
        return unfold(conv(h, outputs, zero=True, name="out_2").astype(x_t.dtype), self.patch_size)
