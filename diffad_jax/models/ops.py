"""Operations whose gradients are written by hand, because the compiler's own cost several times as much on a CPU.

XLA fuses elementwise work into each of its readers. In the gradient of a deep residual network it so repeats, in every
reader, the sum over all later blocks. `compiler.piece` sets a border that fusion does not cross; the gradients below are cut
into pieces that read and write each array once.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffad_jax.compiler import piece

LAYOUT = ("NHWC", "HWIO", "NHWC")


# --- convolution ------------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """3x3 convolution padded by one pixel on every side.

    The gradient of the kernel is a convolution of x with the output's gradient, batch and channels exchanged. It is written
    with explicit transposes, because on a CPU XLA rearranges only the convolutions outside loops for its fast routine: in a
    scan, the stock gradient takes a hundred times as long.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C, D].
        stride: step in both directions.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), D].
    """
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


def _convolve_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # Rows and columns at the far border that the last stride did not reach.
    rest = [(size - 1) % stride for size in x.shape[1:3]]
    dx = jax.lax.conv_general_dilated(
        g,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        [(1, 1 + r) for r in rest],
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    dk = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        [(1, 1 - r) for r in rest],
        rhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return dx, dk.transpose(1, 2, 0, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


# --- products ---------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def products(x: Array, *kernels: Array) -> tuple[Array, ...]:
    """x [..., K] times each kernel [K, N]; a kernel's gradient comes in its own layout, without transposed copies."""
    return _products_forward(x, *kernels)[0]


def _products_forward(x: Array, *kernels: Array) -> tuple[tuple[Array, ...], tuple[Array, tuple[Array, ...]]]:
    # In plain sight of `jax.checkpoint`, whose policies keep products.
    return tuple(x @ kernel for kernel in kernels), (x, kernels)


def _products_backward(saved: tuple[Array, tuple[Array, ...]], gradients: tuple[Array, ...]) -> tuple[Array, ...]:
    x, kernels = saved
    rows = x.reshape(-1, x.shape[-1])
    terms = [
        jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
        for g, kernel in zip(gradients, kernels, strict=True)
    ]
    # Summed from the last: on a GPU XLA has a product add to its second summand, not to its first.
    dx = reduce(lambda total, term: term + total, reversed(terms))
    columns = [g.reshape(-1, g.shape[-1]) for g in gradients]
    return dx, *(jax.lax.dot_general(rows, g, (((0,), (0,)), ((), ()))) for g in columns)


products.defvjp(_products_forward, _products_backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """GELU, x Phi(x) with Phi by a tanh (Hendrycks & Gimpel 2016, section 2); the backward pass keeps x alone.

    In the stock gradient it keeps the tanh too, and on a GPU the product before it cannot take the function over.
    """
    return jax.nn.gelu(x, approximate=True)


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    # The barrier keeps XLA from finding the forward pass's intermediate results again, which it would then keep.
    y = jax.lax.optimization_barrier(x).astype(jnp.float32)
    # In x sigmoid(2 z), as (1 + tanh(z)) / 2 = sigmoid(2 z).
    slope = 2 * math.sqrt(2 / math.pi)
    s = jax.lax.logistic(slope * y * (1 + 0.044715 * y * y))
    derivative = s + slope * y * (1 + 3 * 0.044715 * y * y) * s * (1 - s)
    return ((g.astype(jnp.float32) * derivative).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


# --- resampling -------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def upsample(x: Array) -> Array:
    """Nearest-neighbour upsampling by 2: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    return _spread(x)


@jax.custom_vjp
def downsample(x: Array) -> Array:
    """Mean over 2x2 squares: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
    return 0.25 * _gather(x)


@piece
def _spread(x: Array) -> Array:
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


@piece
def _gather(x: Array) -> Array:
    """Sums of 2x2 squares, written as three additions: a reduction over so short axes runs many times slower."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return (x[:, :, 0, :, 0] + x[:, :, 0, :, 1]) + (x[:, :, 1, :, 0] + x[:, :, 1, :, 1])


upsample.defvjp(lambda x: (upsample(x), None), lambda _, g: (_gather(g),))
downsample.defvjp(lambda x: (downsample(x), None), lambda _, g: (0.25 * _spread(g),))


# --- normalisation ----------------------------------------------------------------------------------------------------

Coefficients = Callable[..., tuple[Array, Array]]
"""(mean [B, C], mean of squares [B, C], *parameters) -> slope, offset [B, C]."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def normalise(
    coefficients: Coefficients, silu: bool, residual: bool, x: Array, *parameters: Array
) -> tuple[Array, Array | None]:
    """x slope + offset, through SiLU if asked, where slope and offset follow from the means of x and x^2 over the picture.

    Args:
        coefficients: the small part of the computation, differentiated by JAX.
        silu: whether y sigmoid(y) is returned instead of y.
        residual: whether x is returned too.
        x: [B, H, W, C].
        parameters: further arguments of `coefficients`.

    Returns:
        The result in the type of x, and x itself or None. A residual branch that goes on from this x has its gradient added
        in a pass over x that is made anyway.
    """
    return _normalise_forward(coefficients, silu, residual, x, *parameters)[0]


def _line(x: Array, slope: Array, offset: Array) -> Array:
    return x.astype(jnp.float32) * slope[:, None, None] + offset[:, None, None]


@piece
def _plain(x: Array, slope: Array, offset: Array) -> Array:
    return _line(x, slope, offset).astype(x.dtype)


@piece
def _with_silu(x: Array, slope: Array, offset: Array) -> Array:
    y = _line(x, slope, offset)
    return (y * jax.lax.logistic(y)).astype(x.dtype)


@piece
def _means(x: Array) -> tuple[Array, Array]:
    """Of x and x^2 over the pixels."""
    x = x.astype(jnp.float32)
    return x.mean((1, 2)), (x * x).mean((1, 2))


@piece
def _sums(g: Array, x: Array) -> tuple[Array, Array]:
    """Of g and g x over the pixels."""
    g = g.astype(jnp.float32)
    return g.sum((1, 2)), (g * x).sum((1, 2))


@piece
def _before_silu(x: Array, slope: Array, offset: Array, g: Array) -> Array:
    y = _line(x, slope, offset)
    s = jax.lax.logistic(y)
    return (g * (s * (1 + y * (1 - s)))).astype(x.dtype)


@piece
def _join(g: Array, x: Array, slope: Array, constant: Array, linear: Array, *through: Array) -> Array:
    return (_line(g, slope, constant) + linear[:, None, None] * x + sum(through)).astype(x.dtype)


# Compiled by themselves so that a network with many of these layers is traced once for each shape, not once a layer.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _normalise_forward(coefficients: Coefficients, silu: bool, residual: bool, x: Array, *parameters: Array) -> Any:
    means = _means(x)
    y = (_with_silu if silu else _plain)(x, *coefficients(*means, *parameters))
    return (y, x if residual else None), (x, means, parameters)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _normalise_backward(coefficients: Coefficients, silu: bool, residual: bool, saved: Any, gradients: Any) -> Any:
    x, means, parameters = saved
    g, *through = gradients if residual else gradients[:1]
    (slope, offset), pull_back = jax.vjp(coefficients, *means, *parameters)
    if silu:
        g = _before_silu(x, slope, offset, g)
    d_offset, d_slope = _sums(g, x)
    d_mean, d_square, *d_parameters = pull_back((d_slope, d_offset))
    pixels = x.shape[1] * x.shape[2]
    return _join(g, x, slope, d_mean / pixels, 2 * d_square / pixels, *through), *d_parameters


normalise.defvjp(_normalise_forward, _normalise_backward)
