"""Pictures larger than the model: overlapping patches are read one after the other and joined to maps of the whole."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax.errors import InputError
from diffad_jax.parametrisation import Denoise
from diffad_jax.scores import Score

OVERLAP = 0.5  # of a patch's size, to a pixel


def places(length: int, size: int) -> np.ndarray:
    """First pixels of the fewest evenly spread patches that cover `length` and overlap by about half of `size`."""
    count = 1 + int(np.ceil((length - size) / max(1.0, size * (1 - OVERLAP))))
    return np.linspace(0, length - size, count).round().astype(int)


def corners(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """The first pixels of the patches that cover a picture; raises InputError on pictures smaller than a patch."""
    if min(height, width) < size:
        raise InputError(f"patches: pictures of {height} x {width} pixels are smaller than size={size}")
    return [(i, j) for i in places(height, size) for j in places(width, size)]


def over_patches(function: Callable[[Array], Array], x: Array, size: int) -> Array:
    """function, which takes [B, size, size, C] to [L, B, size, size], over all of x [B, H, W, C]: [L, B, H, W].

    Where patches overlap, their results are averaged with weights that fall linearly towards a patch's edge, so that no
    seam shows. Patches are computed one after the other: memory is that of one.
    Raises InputError as `corners` does.
    """
    height, width = x.shape[1:3]
    firsts = corners(height, width, size)
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / size
    weight = jnp.asarray(np.outer(ramp, ramp), x.dtype)

    def add(total: tuple[Array, Array], corner: Array) -> tuple[tuple[Array, Array], None]:
        i, j = corner
        patch = jax.lax.dynamic_slice(x, (0, i, j, 0), (x.shape[0], size, size, x.shape[3]))
        sums, weights = total
        at = jax.lax.dynamic_slice(sums, (0, 0, i, j), (*sums.shape[:2], size, size))
        sums = jax.lax.dynamic_update_slice(sums, at + weight * function(patch), (0, 0, i, j))
        at = jax.lax.dynamic_slice(weights, (i, j), (size, size))
        return (sums, jax.lax.dynamic_update_slice(weights, at + weight, (i, j))), None

    shape = jax.eval_shape(function, jax.ShapeDtypeStruct((x.shape[0], size, size, x.shape[3]), x.dtype)).shape
    zeros = jnp.zeros((*shape[:2], height, width), x.dtype), jnp.zeros((height, width), x.dtype)
    (sums, weights), _ = jax.lax.scan(add, zeros, jnp.asarray(firsts))
    return sums / weights


def patchwise(score: Score, size: int, picture: tuple[int, int]) -> Score:
    """`score` over the patches of pictures of any size; all patches see the same noise.

    picture: height and width of those whose `evaluations` are told.
    Raises InputError where the score has no maps.
    """

    def maps(denoise: Denoise, x_0: Array, key: Array) -> Array:
        def of_patch(patch: Array) -> Array:
            found = score.maps(denoise, patch, key)
            if found.ndim != 4:
                raise InputError("config.pipeline.crop: the score has no maps to join, which patches need")
            return found

        return over_patches(of_patch, x_0, size)

    return score._replace(maps=maps, evaluations=score.evaluations * len(corners(*picture, size)))
