"""One digest of named arrays, wherever their parts are.

It does not depend on how arrays are divided over devices and processes. Each process sums up the parts it has, on the
host, or on an accelerator that has them. It detects damage, also a single flipped bit, and not forgery.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from babyjax.processes import sum_over_processes

Arrays = dict[str, Any]  # NumPy arrays, or JAX arrays of which each process has a part
# Words that are summed up at once: they stay in a core's cache.
WORDS = 1 << 16


def digest_of(arrays: Arrays) -> str:
    """Return the sha256 of the names, types, shapes and sums of arrays; a sum has the bits and places of all numbers.

    If other processes have parts of them, every process must call this.
    """
    return digest_of_sums(arrays, sums_of(arrays))


def digest_of_sums(arrays: Arrays, sums: Mapping[str, int]) -> str:
    """Return the digest of arrays, of which only names, types and shapes are needed, from their sums by name."""
    lines = [f"{name} {array.dtype} {array.shape} {sums[name]:08x}\n" for name, array in sorted(arrays.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sums_of(arrays: Arrays) -> dict[str, int]:
    """Return the sums of arrays by name, added up over the processes that have parts of them."""
    parts = [[_sum_of(part) for part in _parts(array)] for array in arrays.values()]
    sums = np.array([sum(map(int, each)) % 2**32 for each in parts], np.uint32)
    divided = {isinstance(array, jax.Array) and not array.is_fully_addressable for array in arrays.values()}
    assert len(divided) < 2, "all arrays belong to all processes, or none"
    return dict(zip(arrays, map(int, sum_over_processes(sums) if True in divided else sums), strict=True))


class Part(NamedTuple):
    """A part of an array as rows of numbers, and where they are in the flattened array.

    `first` is the index of the first number; the rows begin `stride` apart.
    """

    rows: Any
    first: int
    stride: int


def _parts(array: Any) -> Iterator[Part]:
    """The parts of an array that this process has and counts; each part is counted by one process."""
    if not isinstance(array, jax.Array):
        yield Part(array.reshape(1, -1), 0, 0)
        return
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        data = np.asarray(shard.data) if shard.device.platform == "cpu" else shard.data
        split = [axis for axis, size in enumerate(data.shape) if size < array.shape[axis]]
        if not split:
            yield Part(data.reshape(1, -1), 0, 0)
            continue
        (axis,) = split  # no more than one axis is divided
        after = math.prod(array.shape[axis + 1 :])
        rows = data.reshape(math.prod(array.shape[:axis]), -1)
        yield Part(rows, shard.index[axis].start * after, array.shape[axis] * after)


def _sum_of(part: Part) -> Any:
    """Return the sum of a part modulo 2**32: a number, or one that a device computes meanwhile."""
    if isinstance(part.rows, jax.Array):
        return _sum_on_device(part.rows, np.uint32(part.first % 2**32), np.uint32(part.stride % 2**32))
    rows, sums = np.ascontiguousarray(part.rows), 0
    words = rows.view(np.dtype(f"u{min(rows.dtype.itemsize, 4)}"))
    each = words.shape[1] // max(rows.shape[1], 1)  # words of a number: two for 64 bits
    height = max(1, WORDS // max(words.shape[1], 1))
    for row in range(0, len(words), height):
        for column in range(0, words.shape[1], WORDS):
            block = words[row : row + height, column : column + WORDS].astype(np.uint32, copy=False)
            first = each * (part.first + row * part.stride) + column
            sums += int(_mixed(np, block, np.uint32(first % 2**32), np.uint32(each * part.stride % 2**32)))
    return sums


@jax.jit
def _sum_on_device(rows: Array, first: Any, stride: Any) -> UInt32[Array, ""]:
    assert rows.dtype.itemsize <= 4, "there are no 64-bit numbers on a device"
    kind = jnp.dtype(f"u{rows.dtype.itemsize}")
    words = rows.astype(kind) if rows.dtype == bool else jax.lax.bitcast_convert_type(rows, kind)
    return _mixed(jnp, words.astype(jnp.uint32), first, stride)


def _mixed(xp: ModuleType, words: Any, first: Any, stride: Any) -> Any:
    """Return the sum of words, each mixed with its place by MurmurHash3's finalizer (Appleby 2011), modulo 2**32.

    That maps words at a place one to one, so another word changes the sum. `xp` is NumPy or jax.numpy.
    """
    down, right = (xp.arange(length, dtype=xp.uint32) for length in words.shape)
    word = words ^ ((first + down * stride)[:, None] + right) * xp.uint32(0x9E3779B1)
    word = (word ^ word >> 16) * xp.uint32(0x85EBCA6B)
    word = (word ^ word >> 13) * xp.uint32(0xC2B2AE35)
    return (word ^ word >> 16).sum(dtype=xp.uint32)
