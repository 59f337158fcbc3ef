"""How far is a datum from the nearest normals? The question that a denoiser does not answer.

Whether its errors are usual says nothing of where a datum lies among the normals. The distance to the nearest grows with the
non-parametric estimate of diffusion time (`dte`). Vectors are measured in local units, by `dte.adaptive`. Pictures are
compared with the one nearest after global contrast normalisation: in raw pixels brightness and contrast decide, which tell
little of what is shown, and local units serve digits and photos worse than one unit (docs/pictures.md).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax import dte, neighbours

SIDE = 32  # pixels
MOST_VALUES, MOST_ROWS = 2**24, 2**15  # of a bank: 64 MiB, and 32 MiB of distances for a batch of 256
SOFTENING = 0.2  # of pictures in [-1, 1], whose deviation is about 0.5: what has less keeps some of its faintness
COPY = 1e-5  # of a signature's length: how far a copy may lie by rounding, and counts as no farther than 0


def signature(x: Array) -> Array:
    """What is compared: [B, H, W, C] -> [B, D], vectors [B, D] as they are.

    (x - mean(x)) / sqrt(0.2^2 + var(x)) over all values of a picture (global contrast normalisation: Goodfellow et al. 2016,
    "Deep learning", eq. 12.3), whose sides are first shrunk to 32 pixels where they are longer.
    """
    if x.ndim == 4:
        x = jax.image.resize(x, (len(x), *(min(side, SIDE) for side in x.shape[1:3]), x.shape[3]), "linear")
        axes = (1, 2, 3)
        x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(SOFTENING**2 + x.var(axes, keepdims=True))
    return x.reshape(len(x), -1)


def most_rows(shape: tuple[int, ...]) -> int:
    """How many data of a shape [H, W, C] or [D] a bank holds at most."""
    values = jax.eval_shape(signature, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).size
    return max(1, min(MOST_ROWS, MOST_VALUES // values))


def units_of(bank: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """In which unit the distance from each signature of the bank is measured, for data of a shape: [M, D] -> [M]."""
    return dte.bandwidths(bank) if len(shape) == 1 else np.ones(len(bank))


def _count(shape: tuple[int, ...]) -> int:
    """How many nearest normals a datum of a shape is compared with."""
    return dte.neighbour_count(shape[0]) if len(shape) == 1 else 1


def _copies_at_0(found: Array, signatures: Array, units: Array) -> Array:
    """The distances found [N, k], those that rounding alone makes of copies as 0."""
    return jnp.where(found <= COPY * jnp.linalg.norm(signatures, axis=1, keepdims=True) / units.min(), 0, found)


def distances(bank: Array, units: Array, x: Array) -> Array:
    """The mean of the k smallest |s(x) - b_i| / h_i: [M, D], [M], [B, ...] -> [B].

    b_i: the signatures of normals, h_i: their units. k = 1 for pictures, `dte.neighbour_count(D)` for vectors, or as many as
    the bank holds. A row of infinite unit does not count (`neighbours.filled`).
    """
    middle, k = neighbours.middle_of(bank), min(_count(x.shape[1:]), len(bank))
    signatures = signature(x)
    found = _copies_at_0(neighbours.nearest(signatures - middle, bank - middle, units, k), signatures, units)
    count = jnp.minimum(k, jnp.isfinite(units).sum())
    return jnp.where(jnp.arange(k) < count, found, 0).sum(axis=1) / count


def distances_among(
    bank: np.ndarray, units: np.ndarray, signatures: np.ndarray, members: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The same for the signatures of normals, of which the bank holds the `members`: [M, D], [M], [N, D], bool [N] -> [N].

    None is its own neighbour. Exactly 0 for what the bank holds k times besides, and for the only one.
    """
    count = _count(shape)
    found = neighbours.knn_distances(signatures, bank, min(count + 1, len(bank)), units)
    found = np.asarray(_copies_at_0(*map(jnp.asarray, (found, signatures, units))))
    others = found[:, 1:] if len(bank) > 1 else found
    return np.where(members, others.mean(axis=1), found[:, :count].mean(axis=1))
