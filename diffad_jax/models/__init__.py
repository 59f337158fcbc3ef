"""Network backbones: each maps (x_t, t) to an output shaped like x_t, and starts at zero."""

from diffad_jax.models.dit import DiT
from diffad_jax.models.mlp import MLP
from diffad_jax.models.unet import UNet

__all__ = ["MLP", "DiT", "UNet"]
