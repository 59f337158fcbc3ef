"""The diffusion transformer of Peebles & Xie 2023 ("Scalable diffusion models with transformers"), without labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffad_jax.errors import InputError, check_choice
from diffad_jax.models.attention import attention
from diffad_jax.models.layers import Dense, fold, rematerialised, timestep_embedding, unfold
from diffad_jax.models.ops import gelu, products

SIZES = {  # width, depth, num_heads: table 1 of the paper
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
TIME_FEATURES = 256


def sincos_positions(width: int, *lengths: int) -> np.ndarray:
    """Fixed sine-cosine positions of a grid, each axis coded in its own share of the features, last axis first.

    Args:
        width: number of features, divisible by twice the number of axes.
        lengths: (L,) for a sequence, (rows, columns) for a picture.

    Returns:
        [prod(lengths), width], float32.
    """
    share = width // len(lengths)
    frequencies = 10000.0 ** -(np.arange(share // 2) / (share // 2))
    codes = []
    for position in reversed(np.indices(lengths)):
        angles = position.reshape(-1, 1) * frequencies
        codes += [np.sin(angles), np.cos(angles)]
    return np.concatenate(codes, axis=1).astype(np.float32)


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array, dtype: str) -> jax.Array:
    """LayerNorm(x) (1 + scale) + shift with x [B, L, width], shift and scale [B, width]."""
    norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)(x)
    return norm * (1 + scale[:, None]) + shift[:, None]


class QKV(nn.Module):
    """Queries, keys and values by one kernel [width, 3 width], each an array of its own, which attention need not copy."""

    num_heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Map tokens x [B, L, width] to three arrays [B, L, num_heads, width / num_heads]."""
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (width, 3 * width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (3 * width,), jnp.float32)
        parts = products(x, *jnp.split(kernel.astype(self.dtype), 3, axis=1))
        return [
            (part + b).reshape(*x.shape[:2], self.num_heads, -1)
            for part, b in zip(parts, jnp.split(bias.astype(self.dtype), 3), strict=True)
        ]


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning: a residual attention and a residual MLP, both gated by time."""

    num_heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, None]:
        """Map tokens x [B, L, width] and the activated time embedding [B, width] to new tokens."""
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)

        modulation = Dense(6 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")(time)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        q, k, v = QKV(self.num_heads, self.dtype, name="qkv")(_modulate(x, shift_1, scale_1, self.dtype))
        x = x + gate_1[:, None] * dense(width, "proj")(attention(q, k, v).reshape(x.shape))

        h = gelu(dense(4 * width, "fc1")(_modulate(x, shift_2, scale_2, self.dtype)))
        return x + gate_2[:, None] * dense(width, "fc2")(h), None


class DiT(nn.Module):
    """Diffusion transformer over square patches of a picture, or over runs of features of a vector.

    The blocks run in one scan, parameters stacked on a leading axis, so compiling costs the same at any depth.

    Attributes:
        size: "S", "B", "L" or "XL", which sets the three attributes below where they are None.
        patch_size: side of a patch in pixels, or features of a vector that make one token.
        width, depth, num_heads: features a token, number of blocks, attention heads.
        learned_variance: double the output channels: the prediction, then where between its bounds the log variance lies.
        remat: "none", "blocks" or "dots": what the backward pass computes again instead of keeping, see `rematerialised`.
            Keeping products alone ("dots") is also the fastest on a CPU, where memory is slower than arithmetic.
        unroll: blocks that one round of the scan runs. At depth there is no loop, whose rounds copy what the backward pass
            keeps: faster, most of all on a GPU with remat "none", and longer to compile.
        dtype: compute type; parameters, normalisations and softmax stay in float32.

    Source: Peebles & Xie 2023, section 3.2 and table 1 (adaLN-Zero).
    """

    size: str = "S"
    patch_size: int = 2
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    learned_variance: bool = False
    remat: str = "dots"
    unroll: int = 1
    dtype: str = "float32"

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Width, depth and number of heads; raises InputError where the size is unknown."""
        check_choice("size", self.size, SIZES)
        width, depth, num_heads = (
            default if own is None else own
            for own, default in zip((self.width, self.depth, self.num_heads), SIZES[self.size], strict=True)
        )
        return width, depth, num_heads

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        """Map x_t [B, H, W, C] or [B, D] at t [B] in [0, 1] to that shape (last axis doubled if learned_variance).

        The network has no dropout; `train` is there for the signature all backbones share.

        Raises:
            InputError: size is unknown, the heads or positions do not fit the width, or patches do not fit the picture.
        """
        width, depth, num_heads = self.dimensions
        if width % 4 or width % num_heads:
            raise InputError(f"width: found {width}, need a multiple of 4 and of num_heads={num_heads}")
        tokens, grid = self._cut(x_t)

        h = Dense(width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="patches")(tokens)
        h = h + jnp.asarray(sincos_positions(width, *grid), h.dtype)

        normal = nn.initializers.normal(0.02)
        time = timestep_embedding(t, TIME_FEATURES)
        time = nn.silu(Dense(width, kernel_init=normal, dtype=self.dtype, name="time_0")(time))
        time = nn.silu(Dense(width, kernel_init=normal, dtype=self.dtype, name="time_2")(time))

        stack = nn.scan(
            rematerialised(Block, self.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=depth,
            unroll=self.unroll,
        )
        h, _ = stack(num_heads, self.dtype, name="blocks")(h, time)

        zeros = nn.initializers.zeros
        shift, scale = jnp.split(Dense(2 * width, kernel_init=zeros, dtype=self.dtype, name="modulation")(time), 2, -1)
        copies = 2 if self.learned_variance else 1
        output = Dense(copies * tokens.shape[-1], kernel_init=zeros, dtype=self.dtype, name="output")
        h = output(_modulate(h, shift, scale, self.dtype)).astype(x_t.dtype)
        return self._join(h, grid, x_t.shape, copies)

    def _cut(self, x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
        """Tokens [B, L, features of a patch] and the lengths of their grid."""
        p = self.patch_size
        if x.ndim == 2:
            x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % p)))
            return x.reshape(len(x), -1, p), (x.shape[1] // p,)
        if x.ndim != 4 or x.shape[1] % p or x.shape[2] % p:
            raise InputError(
                f"x_t: found shape {x.shape}, need [B, D], or [B, H, W, C] with H, W multiples of patch_size={p}"
            )
        patches = fold(x, p)
        return patches.reshape(len(x), -1, patches.shape[-1]), patches.shape[1:3]

    def _join(self, h: jax.Array, grid: tuple[int, ...], shape: tuple[int, ...], copies: int) -> jax.Array:
        """The inverse of `_cut`, with `copies` times the last axis."""
        if len(shape) == 2:
            h = h.reshape(shape[0], -1, copies)[:, : shape[1]]
            return h.swapaxes(1, 2).reshape(shape[0], -1)
        return unfold(h.reshape(shape[0], *grid, -1), self.patch_size)
