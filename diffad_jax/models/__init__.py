"""Network backbones: Flax modules that map (x_t, t) to an output shaped like x_t, and start at zero.

A backbone is called as `module(x_t, t, train=...)`, x_t [B, ...], t [B] in [0, 1], and has no variables but parameters;
dropout draws from the key "dropout" where train is True. With its field `learned_variance`, if it has one, the last axis of
its output is twice as long. `assembly.MODELS` names those that a config can ask for.
"""

from diffad_jax.models.dit import DiT
from diffad_jax.models.mlp import MLP
from diffad_jax.models.unet import UNet

__all__ = ["MLP", "DiT", "UNet"]
