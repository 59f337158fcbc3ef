"""Random numbers for batches: who shares a draw, and who does not.

A key may be one key or a batch of B keys. One key gives every datum of the batch the same noise: what is computed from a
datum then depends on the datum and the key alone, never on its batch mates, its place or the batch size, and two data are
compared under the same noise. B keys give every datum its own noise (training, drawing samples).
"""

import jax
from jax import Array


def gaussian(key: Array, x: Array) -> Array:
    """Standard normal noise like x, [B, ...]; key: [] (shared by the batch) or [B] (one a datum)."""
    if key.ndim == 0:
        return jax.numpy.broadcast_to(jax.random.normal(key, x.shape[1:], x.dtype), x.shape)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def fold_in(key: Array, number: Array | int) -> Array:
    """A new key, or batch of keys, for the step `number`; key: [] or [B]."""
    return jax.random.fold_in(key, number) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, number))(key)


def keys_for(key: Array, indices: Array) -> Array:
    """One key a datum, [B], from one key and the data's global indices, int [B]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
