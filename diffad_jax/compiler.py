"""`jax.jit` with the routines that are fastest on a CPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# JAX 0.10 has YNNPACK compute products, sums and convolutions. Convolutions go back to Eigen: there kernel gradients run two
# to four times as fast and other convolutions half as fast again (docs/performance.md).
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_REDUCE"
}


def jit(function: Callable[..., Any], platform: str | None = None, **arguments: Any) -> jax.stages.Wrapped:
    """jax.jit(function, **arguments), not to be called inside another; platform: the default backend where it is None."""
    return jax.jit(function, compiler_options=_options(platform or jax.default_backend()), **arguments)


@cache
def _options(platform: str) -> dict[str, str] | None:
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # another version of JAX, which does not know the option
        return None
    return CPU_OPTIONS
