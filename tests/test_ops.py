"""Hand-written gradients against those of the stock operations, and the kernels of attention against each other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffad_jax.compiler import piece
from diffad_jax.models import attention as models_attention
from diffad_jax.models import ops
from diffad_jax.models.attention import attention, cudnn, splash, xla
from diffad_jax.models.layers import GroupNorm

LAYOUT = ("NHWC", "HWIO", "NHWC")


def values(*shapes: tuple[int, ...]) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def agree(
    found: Callable[..., Any], wanted: Callable[..., Any], *arguments: jax.Array, tolerance: float = 1e-5
) -> None:
    """Equal results, and equal gradients of all arguments under one random cotangent."""

    @partial(jax.jit, static_argnums=0)
    def with_gradients(function: Callable[..., Any], *arguments: jax.Array) -> Any:
        output, pull_back = jax.vjp(function, *arguments)
        leaves, tree = jax.tree.flatten(output)
        cotangents = [jax.random.normal(jax.random.key(9 + i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
        return output, pull_back(jax.tree.unflatten(tree, cotangents))

    pairs = zip(*(jax.tree.leaves(with_gradients(f, *arguments)) for f in (found, wanted)), strict=True)
    for ours, stock in pairs:
        np.testing.assert_allclose(ours, stock, atol=tolerance * np.abs(stock).max())


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
def test_products_have_the_stock_gradients_without_a_transposed_copy(shape: tuple[int, ...]) -> None:
    x, *kernels = values(shape, (4, 5), (4, 3), (4, 5))
    agree(ops.products, lambda x, *kernels: tuple(x @ kernel for kernel in kernels), x, *kernels)
    gradient = jax.make_jaxpr(jax.grad(lambda kernel: ops.products(x, kernel)[0].sum()))(kernels[0])
    assert "transpose" not in str(gradient)


def test_gelu_has_the_stock_gradient_and_keeps_its_argument_alone() -> None:
    (x,) = values((6, 50))
    agree(ops.gelu, jax.nn.gelu, 3 * x)
    _, pull_back = jax.vjp(ops.gelu, x)
    assert [leaf.shape for leaf in jax.tree.leaves(pull_back)] == [x.shape]
    # Far out the exponential overflows or vanishes; the slope there is 1 or 0.
    np.testing.assert_allclose(jax.vmap(jax.grad(ops.gelu))(jnp.array([-1e4, -100.0, 100.0, 1e4])), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(8, 6, 1), (7, 5, 1), (8, 6, 2), (7, 6, 2), (6, 9, 2), (1, 2, 2)]
)
def test_convolution(height: int, width: int, stride: int) -> None:
    def stock(x: jax.Array, kernel: jax.Array) -> jax.Array:
        window = {"window_strides": (stride, stride), "padding": [(1, 1), (1, 1)], "dimension_numbers": LAYOUT}
        return jax.lax.conv_general_dilated(x, kernel, **window)  # type: ignore[arg-type]

    agree(lambda x, k: ops.convolve(x, k, stride), stock, *values((3, height, width, 4), (3, 3, 4, 5)))


@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_with_bias_and_modulation(silu: bool) -> None:
    layer, channels = GroupNorm(groups=4, silu=silu, residual=silu), 8

    def ours(
        x: jax.Array, gamma: jax.Array, beta: jax.Array, scale: jax.Array, shift: jax.Array, bias: jax.Array
    ) -> Any:
        return layer.apply({"params": {"scale": gamma, "bias": beta}}, x, scale, shift, bias)

    def stock(
        x: jax.Array, gamma: jax.Array, beta: jax.Array, scale: jax.Array, shift: jax.Array, bias: jax.Array
    ) -> Any:
        groups = (x + bias).reshape(3, 5, 6, 4, -1)
        centred = groups - groups.mean((1, 2, 4), keepdims=True)
        normal = (centred * jax.lax.rsqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-5)).reshape(x.shape)
        y = (normal * gamma + beta) * (1 + scale[:, None, None]) + shift[:, None, None]
        return (nn.silu(y), x) if silu else (y, None)

    shapes = ((3, 5, 6, channels), (channels,), (channels,), (3, channels), (3, channels), (channels,))
    agree(ours, stock, *values(*shapes))


def test_resampling() -> None:
    (x,) = values((2, 6, 4, 3))
    agree(ops.upsample, lambda x: x.repeat(2, axis=1).repeat(2, axis=2), x)
    agree(ops.downsample, lambda x: x.reshape(2, 3, 2, 2, 2, 3).mean((2, 4)), x)


def weighted_mean(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def test_attention() -> None:
    q, k, v = values(*[(2, 9, 3, 4)] * 3)
    agree(attention, weighted_mean, q, k, v)
    # The softmax of logits in the hundreds must not overflow.
    agree(attention, weighted_mean, 30 * q, 30 * k, v, tolerance=1e-4)


def test_splash_attention_interpreted() -> None:
    q, k, v = values(*[(1, 128, 2, 64)] * 3)
    agree(partial(splash, interpret=True), xla, q, k, v, tolerance=1e-4)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_attention() -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in values(*[(2, 196, 4, 64)] * 3))
    agree(cudnn, xla, q, k, v, tolerance=3e-2)


def test_platforms_get_their_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def lowered(length: int, platform: str, dtype: Any = jnp.bfloat16, head_dim: int = 64) -> str:
        q = jax.ShapeDtypeStruct((2, length, 2, head_dim), dtype)
        return (
            jax.jit(lambda q, k, v: attention(q, k, v)).trace(q, q, q).lower(lowering_platforms=(platform,)).as_text()
        )

    assert "tpu_custom_call" in lowered(256, "tpu")
    assert "tpu_custom_call" not in lowered(250, "tpu")
    assert "custom_call" not in lowered(256, "cpu")
    # As on a machine with a GPU, whose library is told by what stands in for it.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(models_attention, "cudnn", lambda q, k, v: jnp.arctan2(q, v))
    assert "atan2" in lowered(250, "cuda")
    for otherwise in ({"platform": "cpu"}, {"dtype": jnp.float32}, {"head_dim": 60}, {"head_dim": 136}):
        assert "atan2" not in lowered(**{"length": 250, "platform": "cuda", **otherwise})


def test_a_piece_is_compiled_by_itself_on_cpu_alone() -> None:
    square = piece(lambda x: x * x)
    traced = jax.jit(lambda x: square(x + 1)).trace(jnp.ones(3))
    assert 'inlineable = "false"' in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "inlineable" not in traced.lower(lowering_platforms=("tpu",)).as_text()
