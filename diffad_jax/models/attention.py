"""The attention used by every backbone."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scaled dot-product attention, softmax(q k^T / sqrt(head_dim)) v, with the softmax in float32.

    Args:
        q, k, v: [B, L, heads, head_dim].

    Returns:
        [B, L, heads, head_dim], in the type of v.

    Source: Vaswani et al. 2017, equation 1.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
