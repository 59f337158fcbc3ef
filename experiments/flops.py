"""FLOPs of a traced program."""

import math
from collections.abc import Iterator
from typing import Any


def flops(program: Any, loops: bool = True) -> float:
    """FLOPs of the matrix products and convolutions of a (closed) jaxpr.

    loops: count a scan's body as often as it runs, else as often as the compiled loop, which may be unrolled, holds it.
    """
    program = getattr(program, "jaxpr", program)
    total = 0.0
    for equation in program.eqns:
        times = 1
        if equation.primitive.name == "scan":
            length = equation.params["length"]
            times = length if loops else min(length, equation.params["unroll"])
        inner = [flops(inner, loops) for inner in _programs(equation.params)]
        # Of a choice one branch runs, at most the dearest.
        total += _own_flops(equation) + times * (max(inner) if equation.primitive.name == "cond" else sum(inner))
    return total


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item


def _own_flops(equation: Any) -> float:
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        per_output = math.prod(kernel) / kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        # Of a dilated input only the places that hold a value cost something.
        return 2.0 * out * per_output / math.prod(equation.params["lhs_dilation"])
    return 0.0
