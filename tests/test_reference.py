"""The mathematics against numbers of a public reference implementation (PyTorch, tables float64, the rest float32).

Where a tolerance is absolute, the reference lost digits in float32: its KL adds and subtracts log variances of a few nats,
which costs up to 3e-7 nats a dimension.
"""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.testing import assert_allclose

from diffad_jax.losses import bits_per_dim, bound_term, discretised_gaussian_decoder, prior_term
from diffad_jax.parametrisation import Prediction, make_denoise, reverse_log_variance
from diffad_jax.process import (
    Process,
    chain,
    cosine_betas,
    diffuse,
    expand,
    linear_betas,
    posterior,
    transition_variance,
)
from diffad_jax.samplers import ddim, sample

BETAS = {"linear": linear_betas(), "cosine": cosine_betas()}
VARIANCES = {"learned": "learned_range", "small": "fixed_small", "large": "fixed_large"}
SHAPE = (8, 8, 3)


@cache
def reference() -> dict[str, np.ndarray]:
    file = Path(__file__).parent / "data" / "reference" / "gaussian_diffusion.npz"
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def under(prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in reference().items() if key.startswith(prefix)}


def close(ours: Array, theirs: np.ndarray, relative: float = 1e-5) -> None:
    """Equal to `relative` of the largest number: elements near 0 are differences of larger ones."""
    assert_allclose(np.broadcast_to(ours, theirs.shape), theirs, rtol=0, atol=relative * np.abs(theirs).max())


@pytest.mark.parametrize("name", BETAS)
def test_tables(name: str) -> None:
    stored = under(f"{name}/")

    @jax.jit
    def tables(s: Array, t: Array) -> dict[str, Array]:
        process, one, zero = chain(BETAS[name]), jnp.ones((1000, 1)), jnp.zeros((1000, 1))
        of_x_0, variance = posterior(process, one, zero, s, t)
        return {
            "betas": transition_variance(process, s, t),
            "alphas_cumprod": process.alpha(t) ** 2,
            "posterior_variance": variance,
            "posterior_mean_coef1": of_x_0[:, 0],
            "posterior_mean_coef2": posterior(process, zero, one, s, t)[0][:, 0],
        }

    with jax.enable_x64(True):
        ours = tables(np.arange(1000) / 1000, np.arange(1, 1001) / 1000)
        for table, values in ours.items():
            assert_allclose(values, stored[table], rtol=1e-9, err_msg=table)


@cache
def noised(name: str) -> tuple[Process, Array, Array, Array, Array]:
    """The process and x_0, x_t, s, t of the stored data, in float64."""
    arrays, process = reference(), chain(BETAS[name])
    x_0, eps = (jnp.asarray(arrays[key], jnp.float64) for key in ("x_0", "eps"))
    s, t = jnp.asarray(arrays["t_index"] / 1000), jnp.asarray((arrays["t_index"] + 1) / 1000)
    return process, x_0, diffuse(process, x_0, t, eps), s, t


@pytest.mark.parametrize("name", BETAS)
def test_forward_process(name: str) -> None:
    stored = under(f"{name}/")
    with jax.enable_x64(True):
        process, x_0, x_t, s, t = noised(name)
        close(x_t, stored["x_t"])
        close(posterior(process, x_0, x_t, s, t)[0], stored["posterior_mean"])
        log_variance = reverse_log_variance(process, Prediction(x_0, x_0), s, t)
        close(log_variance, stored["posterior_log_variance_clipped"])
        bits = bits_per_dim(jax.jit(partial(prior_term, process))(x_0), SHAPE)
        assert_allclose(bits, stored["prior_bits_per_dim"], rtol=1e-5, atol=1e-8)


def approximate_decoder(x_0: Array, mean: Array, log_variance: Array) -> Array:
    """The reference's: Phi by a tanh rounded to float32, in which the tails vanish, and probabilities not below 1e-12."""

    def cdf(z: Array) -> Array:
        return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)).astype(jnp.float32))

    scale = jnp.exp(-0.5 * log_variance)
    upper, lower = cdf((x_0 - mean + 1 / 255) * scale), cdf((x_0 - mean - 1 / 255) * scale)
    probability = jnp.where(x_0 < -0.999, upper, jnp.where(x_0 > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("name", BETAS)
def test_reverse_step_and_bound(name: str, variance: str, clip: float | None) -> None:
    learned = variance == "learned"
    stored = under(f"{name}/{VARIANCES[variance]}/clip{int(clip is not None)}/")
    with jax.enable_x64(True):
        process, x_0, x_t, s, t = noised(name)
        output = jnp.asarray(reference()["model_output"][..., : 6 if learned else 3], jnp.float64)
        prediction = make_denoise(process, lambda x, t: output, learned_variance=learned, clip=clip)(x_t, t)
        close(prediction.x_0, stored["pred_x_0"])
        close(posterior(process, prediction.x_0, x_t, s, t)[0], stored["mean"])
        close(reverse_log_variance(process, prediction, s, t, variance), stored["log_variance"])

        approximate, exact = (
            bits_per_dim(bound_term(process, prediction, x_0, x_t, s, t, decoder, variance), SHAPE)
            for decoder in (approximate_decoder, discretised_gaussian_decoder())
        )
        assert_allclose(approximate, stored["vb_bits_per_dim"], rtol=1e-5, atol=3e-7)
        # The exact Phi moves the decoder term, and no other, by what the vanished tails and the approximation cost.
        assert_allclose(exact, stored["vb_bits_per_dim"], rtol=0.04, atol=3e-7)


def wavy(x: Array, index: Array) -> Array:
    return jnp.sin(x) * (0.5 + expand(index, x) / 2000)


@pytest.mark.parametrize("name", BETAS)
def test_ddim_and_its_inversion(name: str) -> None:
    arrays, key = reference(), jax.random.key(0)
    kept = np.sort(arrays[f"{name}/ddim50/timesteps"]) + 1
    with jax.enable_x64(True):
        process = chain(BETAS[name])
        denoise = make_denoise(process, lambda x, t: wavy(x, t * 1000 - 1))
        times = jnp.asarray(np.append(kept[::-1], 0) / 1000)
        x_0 = sample(ddim(process), denoise, jnp.asarray(arrays["chain/x_T"], jnp.float64), times, key)
        close(x_0, arrays[f"{name}/ddim50/x_0"])

        # The published inversion starts as if x_0 lay at the first kept step and ends in a step to alpha = 0.
        process = chain(np.append(BETAS[name], 1 - 1e-16))
        denoise = make_denoise(process, lambda x, t: wavy(x, t * 1001 - 1))
        times = jnp.asarray(np.append(kept, 1001) / 1001)
        encoded = sample(ddim(process), denoise, jnp.asarray(arrays["x_0"][:2], jnp.float64), times, key)
        close(encoded, arrays[f"{name}/ddim50/encoded"])
