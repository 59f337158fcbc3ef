"""How far is a datum from the nearest normal? The question that a denoiser does not answer.

Whether its errors are usual says nothing of where a datum lies among the normals. The distance to the nearest grows with the
non-parametric estimate of diffusion time (`dte.non_parametric` with one neighbour). Pictures are compared after global
contrast normalisation: in raw pixels brightness and contrast decide, which tell little of what is shown (docs/pictures.md).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax import neighbours

SIDE = 32  # pixels
MOST_VALUES, MOST_ROWS = 2**24, 2**15  # of a bank: 64 MiB, and 32 MiB of distances for a batch of 256
SOFTENING = 0.2  # of pictures in [-1, 1], whose deviation is about 0.5: what has less keeps some of its faintness
COPY = 1e-5  # of a signature's length: how far a datum may lie from itself by the rounding of another batch


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


def filled(bank: Array) -> Array:
    """The bank with so many of its rows once more that banks of about one size have one shape, and share programs."""
    return jnp.resize(bank, (neighbours.shared_size(len(bank)), bank.shape[1]))


def distances(bank: Array, x: Array) -> Array:
    """min_i |s(x) - b_i| over the signatures b_i of normals: [M, D], [B, ...] -> [B]."""
    # Around the middle of the bank, as in `neighbours.knn_distances`.
    middle = bank.mean(axis=0)
    return neighbours.nearest(signature(x) - middle, bank - middle, jnp.ones(len(bank)), jnp.zeros(len(bank)), 1)[:, 0]


def distances_among(bank: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """The same for the signatures of normals that the bank may hold: [M, D], [N, D] -> [N]; none is its own neighbour.

    Exactly 0 for what the bank holds twice.
    """
    found = neighbours.knn_distances(signatures, bank, min(2, len(bank)))
    found[found <= COPY * np.linalg.norm(signatures, axis=1, keepdims=True)] = 0
    return np.where(found[:, 0] == 0, found[:, -1], found[:, 0])
