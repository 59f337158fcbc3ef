"""How far is a datum from the nearest normals? The question that a denoiser does not answer.

Whether its errors are usual says nothing of where a datum lies among the normals. The distance to the nearest grows with
the non-parametric estimate of diffusion time (`dte`): the empirical model (1 / N) sum_i N(x; x_i, h_i^2 s^2 I) of N normals
x_i has sample-point bandwidths h_i (Breiman, Meisel & Purcell 1977, eq. 2.2), and for small noise the s^2 that explains x
best is governed by the smallest |x - x_i| / h_i.

Vectors are so measured in the units of each normal's neighbourhood, and in three views: whitened, where a broken correlation
is far, but noise in a direction of little variance counts as much as all else; with their columns merely scaled, where it is
the other way round; and so once more with units that have no bounds, where what lies just outside a dense region is far, as
near as it would be elsewhere (as by local outlier factors: Breunig et al. 2000). Pictures are compared with the one nearest
after global contrast normalisation: in raw pixels brightness and contrast decide, which tell little of what is shown, and
local units serve digits and photos worse than one unit (docs/pictures.md).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffad_jax import densities, neighbours

SIDE = 32  # pixels
MOST_VALUES, MOST_ROWS = 2**24, 2**15  # of a bank: 64 MiB
SOFTENING = 0.2  # of pictures in [-1, 1], whose deviation is about 0.5: what has less keeps some of its faintness
# Of what the bank holds, and of what is nearer: the same in each detector of some normals, whose thresholds would otherwise
# part what all of them know.
LEAST = -1e3
ROUNDING = 1e-5  # of logarithms
COPY = 1e-5  # of a signature's length: how far a copy may lie by rounding, and counts as no farther than 0
# Chosen by experiments/selection.py, like the constants of the whitening in `defaults`.
BANDWIDTH_NEIGHBOURS = 10
MAX_UNIT_RATIO = 1.3
MARGIN = 0.5
TERMS = 300
NO_BOUNDS = 1e3  # of units, but for those that copies make 0
FEWEST, MOST = 3, 10  # the ends of the range in which TERMS decides


class Near(NamedTuple):
    """What is kept of normals: M signatures of D values, seen in V views.

    bank: [M, D]. weights: [V, D], of the columns in each view. units: [V, M], in which the distance from each normal is
    measured. usual: [V, 2], mean and standard deviation of the logarithms of normals' distances from the others; in the view
    of units without bounds the mean is MARGIN deviations higher.
    """

    bank: Array
    weights: Array
    units: Array
    usual: Array


_EMPTY: Any = [np.zeros((0, size), np.float32) for size in (0, 0, 0, 2)]  # an import must not start JAX's backend
NOT_ASKED = Near(*_EMPTY)


# --- what is compared ---------------------------------------------------------------------------------------------------


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


# --- in which unit ------------------------------------------------------------------------------------------------------


def bandwidths(
    bank: np.ndarray, count: int = BANDWIDTH_NEIGHBOURS, clips: Sequence[float] = (MAX_UNIT_RATIO,)
) -> np.ndarray:
    """h_i = sqrt(mean of the k smallest |x_i - x_j|^2, j != i), within [m / c, c m] of the row's group: [len(clips), N].

    k: `count`, c: each of the clips, >= 1; c = 1 gives the rows of a group one unit. m: the median of the h_i > 0 of a group
    of about one density (`densities.groups`). Units without bounds alone would hide how sparse a region is, which is what
    tells anomalies in tables, whose densities differ by orders of magnitude, but without gaps: most of their units lie beyond
    c = 1.3, of those of embeddings about a tenth. Where all rows are copies of others, or there is one row alone, no scale is
    known, and m = 1.
    """
    if len(bank) == 1:
        return np.ones((len(clips), 1))
    k = min(count, len(bank) - 1)
    # A row's nearest is itself, or a copy at the same distance 0.
    found, places = neighbours.knn(bank, bank, k + 1)
    h = np.sqrt(np.square(found[:, 1:], dtype=np.float64).mean(axis=1))
    return np.stack([_bounded(h, places, clip) for clip in clips])


def _bounded(h: np.ndarray, places: np.ndarray, clip: float) -> np.ndarray:
    """The units h [N] of rows with their neighbours' places [N, K], within the bounds of each group."""
    m, group = np.ones(len(h)), densities.groups(h, places, clip)
    for one in range(1 + group.max()):
        own = h[(group == one) & (h > 0)]
        m[group == one] = np.median(own) if len(own) else 1
    return np.clip(h, m / clip, clip * m)


def views_of(bank: np.ndarray, deviations: np.ndarray | None, count: int, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """The views of vectors: the weights of the columns, [V, D], and the units of the bank [M, D] in each, [V, M].

    The columns as they are, and, where whitening has taken deviations [D] from them, with these given back, in units within
    the clip; then the last of these once more, in units without bounds.
    """
    ones = np.ones(bank.shape[1], np.float32)
    weights = [ones] if deviations is None else [ones, deviations.astype(np.float32)]
    units = [bandwidths(bank * w, count, (clip,)) for w in weights[:-1]]
    units.append(bandwidths(bank * weights[-1], count, (clip, NO_BOUNDS)))
    return np.stack([*weights, weights[-1]]), np.concatenate(units)


def neighbour_count(shape: tuple[int, ...], terms: float = TERMS) -> int:
    """How many of the nearest normals a datum of a shape is compared with: 1 for pictures, k = terms / D within 3 and 10.

    The mean over several steadies it, the fewer the more columns each distance already sums over.
    """
    return round(min(max(terms / shape[0], FEWEST), MOST)) if len(shape) == 1 else 1


# --- how far ------------------------------------------------------------------------------------------------------------


def remember(
    bank: np.ndarray,
    signatures: np.ndarray,
    members: np.ndarray,
    shape: tuple[int, ...],
    deviations: np.ndarray | None = None,
    bandwidth: tuple[int, float] = (BANDWIDTH_NEIGHBOURS, MAX_UNIT_RATIO),
    terms: float = TERMS,
    margin: float = MARGIN,
) -> tuple[Near, np.ndarray]:
    """What is kept of normals of a shape, and how far normals with the given signatures [N, D] are from the others, [N].

    bank: signatures [M, D]. members: bool [N], which of the N the bank holds; none is its own neighbour. deviations: [D] of
    whitened vectors. bandwidth: count and clip of `views_of`, which gives vectors their units; pictures have one. margin: how
    many deviations farther a datum must be in the view of units without bounds than in others to be as far, since of three
    views one is the more often far by chance; inf leaves the view out.
    """
    count, vectors = neighbour_count(shape, terms), len(shape) == 1
    if vectors:
        weights, units = views_of(bank, deviations, *bandwidth)
    else:
        weights, units = np.ones((1, bank.shape[1]), np.float32), np.ones((1, len(bank)))
    found = np.stack([_among(bank * w, h, signatures * w, members, count) for w, h in zip(weights, units, strict=True)])
    usual = np.stack([_usual(own) for own in found])
    if vectors:
        usual[-1, 0] += margin * usual[-1, 1]
    near = Near(*(jnp.asarray(array, jnp.float32) for array in (bank, weights, units, usual)))
    return near, _farthest(found, usual).astype(np.float32)


def distances(near: Near, x: Array, terms: float = TERMS) -> Array:
    """How many deviations of the normals' log distances a datum is farther than they are: [B, ...] -> [B].

    max over views v of (log d_v - mean_v) / deviation_v, less MARGIN in the view of units without bounds; d_v the mean of the
    k smallest |w_v (s(x) - b_i)| / h_vi, b_i the signatures of normals, h_vi their units and w_v the weights of the columns;
    k as `neighbour_count` says, or as many as the bank holds. A row of infinite unit does not count (`neighbours.filled`).
    What the bank holds k times has LEAST.
    """
    k = min(neighbour_count(x.shape[1:], terms), len(near.bank))
    middle, signatures = neighbours.middle_of(near.bank), signature(x)
    counted = jnp.arange(k) < jnp.isfinite(near.units[0]).sum()

    def in_view(view: tuple[Array, Array]) -> Array:
        weights, units = view
        rows, seen = (near.bank - middle) * weights, signatures * weights
        found, places = neighbours.nearest(seen - middle * weights, rows, units, k)
        found = _copies_at_0(found, places, seen, units)
        return jnp.where(counted, found, 0).sum(axis=1) / counted.sum()

    return _farthest(jax.lax.map(in_view, (near.weights, near.units)), near.usual)


def filled(near: Near) -> Near:
    """The same normals in arrays of a shape that banks of about one size share, see `neighbours.filled`."""
    bank, units = neighbours.filled(near.bank, near.units)
    return near._replace(bank=bank, units=units)


def _among(bank: np.ndarray, units: np.ndarray, signatures: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """d of `distances`, in one view, for normals of which the bank holds the members: [M, D], [M], [N, D], bool [N] -> [N].

    Exactly 0 for what the bank holds k times besides, and for the only one.
    """
    found, places = neighbours.knn(signatures, bank, min(count + 1, len(bank)), units)
    found = _copies_at_0(found, places, signatures, units)
    others = found[:, 1:] if len(bank) > 1 else found
    return np.where(members, others.mean(axis=1), found[:, :count].mean(axis=1))


def _usual(found: np.ndarray) -> np.ndarray:
    """Mean and deviation of the logarithms of normals' distances [N].

    Copies tell nothing of how far normals lie apart, and a single one would be all of the deviation. Where all are equal it
    is 1, as on a grid, whose distances differ by the rounding of float32.
    """
    logs = np.log(found[found > 0]) if found.any() else np.zeros(1)
    deviation = logs.std()
    return np.array([logs.mean(), deviation if deviation > ROUNDING else 1.0])


# These two take arrays of NumPy and of JAX: JAX would compile each operation anew for every number of rows that is kept.


def _copies_at_0(found: Any, places: Any, signatures: Any, units: Any) -> Any:
    """The distances found [N, k] from the rows at `places`, those that rounding alone makes of copies as 0."""
    xp = found.__array_namespace__()
    rounding = COPY * xp.linalg.norm(signatures, axis=1, keepdims=True) / units[places]
    return xp.where(found <= rounding, 0, found)


def _farthest(found: Any, usual: Any) -> Any:
    """The largest over views of the standardised log distances, LEAST or more: [V, B] -> [B]."""
    xp = found.__array_namespace__()
    logs = xp.log(xp.where(found > 0, found, 1))
    return xp.where(found > 0, xp.maximum((logs - usual[:, :1]) / usual[:, 1:], LEAST), LEAST).max(axis=0)
