"""Published PyTorch weights in our parameter trees.

Both functions walk a tree of the right structure (from `model.init`, or `jax.eval_shape` of it, under "params"), look
up every leaf by its published name, and insist that each name is used and each shape fits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from diffad_jax.errors import InputError
from diffad_jax.models.dit import sincos_positions

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_UNET = {
    "down": "input_blocks",
    "middle": "middle_block",
    "up": "output_blocks",
    "time": "time_embed",
    "in_norm": "in_layers.0",
    "in_conv": "in_layers.2",
    "emb": "emb_layers.1",
    "out_norm": "out_layers.0",
    "out_conv": "out_layers.3",
    "skip": "skip_connection",
}
_DIT = {
    "patches": "x_embedder.proj",
    "time_0": "t_embedder.mlp.0",
    "time_2": "t_embedder.mlp.2",
    "modulation": "final_layer.adaLN_modulation.1",
    "output": "final_layer.linear",
}
_DIT_BLOCK = {
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
}


def unet_params(weights: Mapping[str, np.ndarray], params: Any) -> Any:
    """Parameters of `UNet` from a state dict of the unconditional Dhariwal & Nichol 2021 network.

    Args:
        weights: arrays by published name, for example "input_blocks.0.0.weight" (convolutions OIHW).
        params: parameter tree of the model that is to hold them; only its structure and shapes are read.

    Returns:
        A tree like params, float32.

    Raises:
        InputError: a name is missing or left over, or a shape does not fit.
    """

    def names(path: tuple[str, ...]) -> list[str]:
        head, *number = path[0].split("_")
        inner = [_UNET.get(name, name) for name in path[1:-1]]
        return [".".join([_UNET.get(head, head), *number, *inner, _LEAVES[path[-1]]])]

    return _fill(dict(weights), params, names)


def dit_params(weights: Mapping[str, np.ndarray], params: Any, *, label: int = -1) -> Any:
    """Parameters of `DiT` from a state dict of the class-conditional Peebles & Xie 2023 network, at one fixed class.

    The published conditioning is the sum of a time and a label embedding, so the row of the label becomes part of the
    bias of the last time layer, and the result is an unconditional network.

    Args:
        weights: arrays by published name, for example "blocks.0.attn.qkv.weight".
        params: parameter tree of the model that is to hold them; only its structure and shapes are read.
        label: row of the label table; the default is its last row, the null class.

    Returns:
        A tree like params, float32.

    Raises:
        InputError: a name is missing or left over, a shape does not fit, the positions are not the fixed sine-cosine
            ones of a square picture, or there is no such label.
    """
    left = dict(weights)
    if missing := {"pos_embed", "y_embedder.embedding_table.weight", "t_embedder.mlp.2.bias"} - set(left):
        raise InputError(f"weights: missing {', '.join(sorted(missing))}")
    positions, table = left.pop("pos_embed"), left.pop("y_embedder.embedding_table.weight")
    _, length, width = positions.shape
    side = round(length**0.5)
    if side**2 != length or not np.allclose(positions[0], sincos_positions(width, side, side), atol=1e-5):
        raise InputError(
            f"weights: pos_embed, shape {positions.shape}, is not the sine-cosine code of a square picture"
        )
    if not -len(table) <= label < len(table):
        raise InputError(f"label: found {label}, allowed are 0 to {len(table) - 1}, or -1 for the last")
    left["t_embedder.mlp.2.bias"] = left["t_embedder.mlp.2.bias"] + table[label]

    def names(path: tuple[str, ...]) -> list[str]:
        if path[0] == "blocks":
            depth = params["blocks"]["qkv"]["bias"].shape[0]
            return [f"blocks.{i}.{_DIT_BLOCK[path[1]]}.{_LEAVES[path[-1]]}" for i in range(depth)]
        return [f"{_DIT[path[0]]}.{_LEAVES[path[-1]]}"]

    return _fill(left, params, names)


def _fill(left: dict[str, np.ndarray], params: Any, names: Callable[[tuple[str, ...]], list[str]]) -> Any:
    """A tree like params from the arrays in left; several names for one leaf are layers stacked on its first axis."""
    flat, structure = jax.tree_util.tree_flatten_with_path(params)
    wanted = [(names(tuple(key.key for key in path)), leaf.shape) for path, leaf in flat]
    needed = {name for group, _ in wanted for name in group}
    for problem, which in (("missing", needed - set(left)), ("left over", set(left) - needed)):
        if which:
            raise InputError(f"weights: {problem} {', '.join(sorted(which))}")

    leaves = []
    for group, shape in wanted:
        stacked = len(group) > 1 or group[0].startswith("blocks.")
        arrays = [_transpose(np.asarray(left[name], np.float32), len(shape) - stacked) for name in group]
        array = np.stack(arrays) if stacked else arrays[0]
        if array.shape != shape:
            raise InputError(f"weights: {group[0]} gives shape {array.shape}, the model has {shape}")
        leaves.append(array)
    return jax.tree_util.tree_unflatten(structure, leaves)


def _transpose(weight: np.ndarray, ndim: int) -> np.ndarray:
    """Outputs-first weight as ours: OIHW -> HWIO, and to inputs x outputs where our leaf is a matrix."""
    if weight.ndim == 1:
        return weight
    weight = np.moveaxis(weight, (0, 1), (-1, -2))
    return weight.reshape(-1, weight.shape[-1]) if ndim == 2 else weight
