"""A number that tells a training state from one of which a bit has turned, found where its arrays lie."""

import json
from typing import Any

import jax
import numpy as np

from diffad_jax import distributed

SUM_ON_DEVICE = 2**24  # bytes from which an array is summed where it lies


def sum_of_bits(state: Any) -> tuple[int, bool]:
    """The words of a state's arrays, of 32 bits or of 8, summed mod 2^32, and whether all are finite; alike in every process.

    What several devices hold alike counts once. A device sums its parts of large arrays itself, so that Orbax alone copies
    them to the host; a CPU's are there, and of small ones a copy is sooner made than a program compiled for each shape.
    """
    on_host, found = jax.default_backend() == "cpu", []
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            parts = [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]
            few = on_host or leaf.nbytes < SUM_ON_DEVICE
            found += [_of_part(np.asarray(part)) if few else _of_part_on_device(part) for part in parts]
        elif jax.process_index() == 0:
            found.append(_of_part(np.asarray(leaf)))
    own = sum(int(total) for total, _ in found) % 2**32, all(bool(finite) for _, finite in found)
    told = [json.loads(said) for said in distributed.exchange(json.dumps(own))]
    return sum(total for total, _ in told) % 2**32, all(finite for _, finite in told)


def _of_part(part: Any) -> tuple[Any, Any]:
    words = part.reshape(-1).view(np.uint32 if part.dtype.itemsize % 4 == 0 else np.uint8)
    return words.sum(dtype=np.uint32), part.__array_namespace__().isfinite(part).all()


_of_part_on_device = jax.jit(_of_part)
