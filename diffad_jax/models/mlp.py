"""A residual multilayer perceptron for feature vectors."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffad_jax.errors import InputError
from diffad_jax.models.layers import Dense, timestep_embedding

TIME_WIDTH = 128  # Wide enough for time, narrow enough that conditioning costs a fraction of the blocks.


class MLP(nn.Module):
    """Residual MLP, each block h + W_2 silu(W_1 (LayerNorm(h) (1 + scale(t)) + shift(t))).

    Attributes:
        width: features of the hidden layers.
        depth: number of blocks.
        features: act on the first so many features alone and leave the output 0 for the rest; None for all. With a
            preconditioned output over whitened data, leading components first, 0 is the exact Gaussian denoiser, so the
            network learns where the data have structure to learn and costs the same at any width of the data.
        dropout: rate in [0, 1), active when train is True (needs a "dropout" key).
        learned_variance: double the output: the prediction, then where between its bounds the log variance lies.
        dtype: compute type; parameters and normalisations stay in float32.

    Source: the residual MLP of Gorishniy et al. 2021, section 3.2, conditioned as in Perez et al. 2018, equation 1.
    """

    width: int = 512
    depth: int = 3
    features: int | None = None
    dropout: float = 0.0
    learned_variance: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        """Map x_t [B, D] at times t [B] in [0, 1] to [B, D], or [B, 2 D] with learned_variance.

        Raises:
            InputError: x_t is not [B, D].
        """
        if x_t.ndim != 2:
            raise InputError(f"x_t: found shape {x_t.shape}, need [B, D]")
        time = timestep_embedding(t, TIME_WIDTH)
        time = nn.silu(Dense(TIME_WIDTH, dtype=self.dtype, name="time_0")(time))
        time = nn.silu(Dense(TIME_WIDTH, dtype=self.dtype, name="time_1")(time))

        features = min(self.features or x_t.shape[-1], x_t.shape[-1])
        h = Dense(self.width, dtype=self.dtype, name="input")(x_t[:, :features])
        for i in range(self.depth):
            condition = Dense(2 * self.width, dtype=self.dtype, name=f"condition_{i}")(time)
            scale, shift = condition[:, : self.width], condition[:, self.width :]
            r = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h) * (1 + scale) + shift
            r = nn.silu(Dense(self.width, dtype=self.dtype, name=f"hidden_{i}")(r))
            r = nn.Dropout(self.dropout, deterministic=not train)(r)
            h = h + Dense(self.width, dtype=self.dtype, name=f"residual_{i}")(r)

        h = nn.silu(nn.LayerNorm(dtype=self.dtype, name="norm")(h))
        parts = 2 if self.learned_variance else 1
        outputs = Dense(parts * features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="output")(h)
        outputs = outputs.astype(x_t.dtype).reshape(-1, parts, features)
        rest = x_t.shape[-1] - features
        return jnp.pad(outputs, ((0, 0), (0, 0), (0, rest))).reshape(x_t.shape[0], -1)
