"""The attention used by every backbone: one function, with the kernel of each platform behind it."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec, get_abstract_mesh

from diffad_jax.compiler import piece

LANES = 128  # of a TPU's vector unit; splash attention works on blocks of so many tokens
CUDNN_MULTIPLE, CUDNN_MOST = 8, 128  # features of a head


def attention(q: Array, k: Array, v: Array) -> Array:
    """Scaled dot-product attention, softmax(q k^T / sqrt(head_dim)) v, with the softmax in float32.

    The platform's own kernel where the shapes allow it, chosen when the program is lowered, else `xla`: `cudnn` for half
    precision and heads of up to 128 features, by eights, on a GPU; `splash` for lengths and heads that are multiples of 128
    and 64 on a TPU.

    Args:
        q, k, v: [B, L, heads, head_dim].

    Returns:
        [B, L, heads, head_dim], in the type of v.

    Source: Vaswani et al. 2017, equation 1.
    """
    length, _, head_dim = q.shape[1:]
    own = {}
    # Its support is checked when traced, on the machine that traces.
    half = jax.default_backend() == "gpu" and v.dtype in (jnp.bfloat16, jnp.float16)
    if half and head_dim % CUDNN_MULTIPLE == 0 and head_dim <= CUDNN_MOST:
        own["cuda"] = cudnn
    if length % LANES == 0 and head_dim % (LANES // 2) == 0:
        own["tpu"] = _splash_by_rows
    return jax.lax.platform_dependent(q, k, v, **own, default=xla) if own else xla(q, k, v)


def cudnn(q: Array, k: Array, v: Array) -> Array:
    """The flash attention of NVIDIA's library, for half precision."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def splash(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    """Attention by JAX's TPU kernel; interpret runs it anywhere, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    length, heads, head_dim = q.shape[1:]
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((length, length))] * heads)
    kernel = splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q * head_dim**-0.5, k, v))
    return jnp.moveaxis(jax.vmap(kernel)(q, k, v), 1, 2)


def _splash_by_rows(q: Array, k: Array, v: Array) -> Array:
    """Splash attention of each device's rows, where whole arrays are seen on a mesh (`sharding.on`): XLA cannot split it."""
    mesh = get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return splash(q, k, v)
    if len(q) % mesh.size:
        return xla(q, k, v)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(splash, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows, check_vma=False)(q, k, v)


# --- XLA --------------------------------------------------------------------------------------------------------------
#
# The weights are never divided by their sums, only arrays of size L x head_dim are, and the backward pass computes them
# again: one elementwise pass over L x L forward, two backward, nothing of that size kept. Source: Dao et al. 2022
# ("FlashAttention"), section 3.1 and appendix B.2, without the tiling. Both gradients that sum over queries are taken
# transposed, so that the small factor is the one that is turned.


@jax.custom_vjp
def xla(q: Array, k: Array, v: Array) -> Array:
    """Attention by XLA, on every platform."""
    return _forward(q, k, v)[0]


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


@piece
def _weights(logits: Array, top: Array) -> Array:
    return jnp.exp(logits - top)


@piece
def _gradient(weights: Array, d_weights: Array, delta: Array) -> Array:
    return weights * (d_weights - delta)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    q, k, heads_v = (jnp.moveaxis(x, 2, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    logits = _product("bhqd,bhkd->bhqk", q, k)
    top = logits.max(-1, keepdims=True)
    weights = _weights(logits, top)
    total = weights.sum(-1, keepdims=True)
    out = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), heads_v) / total
    return jnp.moveaxis(out, 1, 2).astype(v.dtype), (q, k, heads_v, out, top, total)


def _backward(saved: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, top, total = saved
    g = (jnp.moveaxis(g, 2, 1) / total).astype(v.dtype)
    weights = _weights(_product("bhqd,bhkd->bhqk", q, k), top)
    dv = _product("bhqd,bhqk->bhdk", g, weights.astype(g.dtype))
    delta = (g * out).sum(-1, keepdims=True)
    d_logits = _gradient(weights, _product("bhqd,bhkd->bhqk", g, v), delta).astype(q.dtype)
    dq = _product("bhqk,bhkd->bhqd", d_logits, k) * q.shape[-1] ** -0.5
    dk = _product("bhqd,bhqk->bhdk", q, d_logits)
    return (
        jnp.moveaxis(dq, 1, 2).astype(q.dtype),
        jnp.moveaxis(dk, (1, 3), (2, 1)).astype(k.dtype),
        jnp.moveaxis(dv, (1, 3), (2, 1)).astype(v.dtype),
    )


xla.defvjp(_forward, _backward)
