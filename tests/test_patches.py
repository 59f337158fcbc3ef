import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffad_jax import process, scores
from diffad_jax.errors import InputError
from diffad_jax.parametrisation import Prediction
from diffad_jax.patches import over_patches, patchwise, places


@pytest.mark.parametrize(("length", "size"), [(8, 8), (9, 8), (100, 16), (37, 8), (5, 1)])
def test_places_cover_and_overlap(length: int, size: int) -> None:
    found, step = places(length, size), max(1, size / 2)
    assert found[0] == 0
    assert found[-1] == length - size
    assert (np.diff(found) <= np.ceil(step)).all()
    assert len(found) == 1 or (len(found) - 2) * step < length - size


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (1, 13, 22, 3), (3, 9, 8, 1)])
def test_what_is_local_comes_back_unchanged(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = jax.jit(lambda x: over_patches(lambda p: jnp.moveaxis(p, -1, 0) ** 2, x, 8))(x)
    assert_allclose(found, np.moveaxis(x, -1, 0) ** 2, rtol=1e-5, atol=1e-6)


def test_scores_of_patches() -> None:
    """A denoiser that answers 0 has the error x^2 everywhere; a spot is found where it is; seams do not show."""
    p = process.cosine()

    def denoise(x_t: jax.Array, t: jax.Array) -> Prediction:
        return Prediction(jnp.zeros_like(x_t), x_t)

    x = np.full((1, 20, 27, 1), 0.5, np.float32)
    x[0, 11, 17] = 1.0
    score = patchwise(scores.one_step(p, (0.3, 0.5), 2), 8, (20, 27))
    found = np.asarray(score.maps(denoise, x, jax.random.key(0)))
    assert score.evaluations == 4 * (4 * 6)  # 20 and 27 pixels in steps of up to 4
    assert_allclose(found, np.broadcast_to(x[None, ..., 0] ** 2, (2, 1, 20, 27)), rtol=1e-5)


def test_what_patches_refuse() -> None:
    with pytest.raises(InputError, match="pictures of 7 x 9 pixels are smaller than size=8"):
        over_patches(lambda p: p, jnp.zeros((1, 7, 9, 1)), 8)
    with pytest.raises(InputError, match="no maps to join"):
        score = scores.Score(lambda denoise, x, key: jnp.zeros((1, len(x))), 1)
        patchwise(score, 8, (9, 9)).maps(lambda x, t: None, jnp.zeros((1, 9, 9, 1)), jax.random.key(0))  # type: ignore[arg-type]


def test_patches_give_way_to_each_other_gradually() -> None:
    """Of two patches that overlap by two columns, one of zeros and one of twos."""
    x = jnp.broadcast_to(jnp.arange(6.0)[None, None, :, None], (1, 4, 6, 1))
    joined = over_patches(lambda patch: jnp.broadcast_to(patch[:, :1, :1, 0], (1, 1, 4, 4)), x, 4)
    assert_allclose(joined[0, 0, 0], [0, 0, 2 / 3, 4 / 3, 2, 2], rtol=1e-6)
