"""Random numbers for batches: who shares a draw, and who does not.

A key may be one key or a batch of B keys. One key gives every datum of the batch the same noise: what is computed from a
datum then depends on the datum and the key alone, never on its batch mates, its place or the batch size, and two data are
compared under the same noise. B keys give every datum its own noise (training, drawing samples).
"""

from typing import NamedTuple

import jax
from jax import Array


class Mirrored(NamedTuple):
    """A key whose draws are sign times those of `key`: with the signs 1 and -1, both halves of an antithetic pair.

    Where everything is linear in the noise, the mean over the pair is free of it, however many draws a sampler makes.
    """

    key: "Key"
    sign: Array


Key = Array | Mirrored


def gaussian(key: Key, x: Array) -> Array:
    """Standard normal noise like x, [B, ...]; key: [] (shared by the batch) or [B] (one a datum)."""
    if isinstance(key, Mirrored):
        return jax.numpy.asarray(key.sign, x.dtype) * gaussian(key.key, x)
    if key.ndim == 0:
        return jax.numpy.broadcast_to(jax.random.normal(key, x.shape[1:], x.dtype), x.shape)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def key_of(seed: int) -> Array:
    """The key of a seed, of the one generator by which runs are repeated, whatever the environment chooses for JAX."""
    return jax.random.key(seed, impl="threefry2x32")


def fold_in(key: Key, number: Array | int) -> Key:
    """A new key, or batch of keys, for the step `number`; key: [] or [B]."""
    if isinstance(key, Mirrored):
        return key._replace(key=fold_in(key.key, number))
    return jax.random.fold_in(key, number) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, number))(key)


def keys_for(key: Array, indices: Array) -> Array:
    """One key a datum, [B], from one key and the data's global indices, int [B]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
