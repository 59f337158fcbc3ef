"""`jax.jit` with the routines that are fastest on each platform, and borders that its fusion does not cross."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

# Measured in docs/performance.md.
OPTIONS: dict[str, dict[str, Any]] = {
    # JAX 0.10 has YNNPACK compute products, sums and convolutions. Convolutions go back to Eigen: there kernel gradients run
    # two to four times as fast and other convolutions half as fast again.
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
        "LIBRARY_FUSION_TYPE_REDUCE"
    },
    # Products by cuBLASLt, which also adds biases and computes the GELU, one for each of queries, keys and values, whose
    # results then need no copy; what the program rounds to bfloat16 is also kept in bfloat16.
    "gpu": {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_dot_merger_threshold_mb": 0,
        "xla_allow_excess_precision": False,
    },
}


def jit(function: Callable[..., Any], platform: str | None = None, **arguments: Any) -> jax.stages.Wrapped:
    """jax.jit(function, **arguments), not to be called inside another; platform: the default backend where it is None."""
    return jax.jit(function, compiler_options=_options(platform or jax.default_backend()), **arguments)


@cache
def _options(platform: str) -> dict[str, Any] | None:
    if (options := OPTIONS.get(platform)) is None:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # another version of JAX, which does not know an option
        return None
    return options


def piece(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; on a CPU, XLA compiles it by itself and fuses nothing across its border."""
    compiled = jax.jit(function)

    def alone(*arguments: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return lambda *arguments: jax.lax.platform_dependent(*arguments, cpu=alone, default=function)
