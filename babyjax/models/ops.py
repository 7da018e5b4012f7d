"""Matrix product, normalization and attention: a short reference that says what is computed, then the fast form.

The models call the fast forms; `tests/models/test_ops.py` compares the values and gradients of every pair.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Heads = Float[Array, "B T H K"]
Cached = Float[Array, "B H S K"]
Drop = Callable[[Float[Array, "B H T S"]], Float[Array, "B H T S"]]
EPSILON = 1e-5


def matmul_reference(
    x: Float[Array, "*shape D"], kernel: Float[Array, "D E"], dtype: str | None = None
) -> Float[Array, "*shape E"]:
    """Return `x @ kernel` in `dtype` (default: that of `x`)."""
    return jnp.matmul(x, kernel, preferred_element_type=dtype or x.dtype)


def matmul(
    x: Float[Array, "*shape D"], kernel: Float[Array, "D E"], dtype: str | None = None
) -> Float[Array, "*shape E"]:
    # As one flat matrix: on a CPU the backward pass is a third faster than over several leading axes.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return matmul_reference(rows, kernel, dtype).reshape(*x.shape[:-1], kernel.shape[-1])


def normalize_reference(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """Shift and scale `x` to mean 0 and variance 1 over the last axis."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + EPSILON)


# With a gradient by hand: on a CPU the derived one passes over the activations more often.
normalize = jax.custom_vjp(normalize_reference)


def _normalize_forward(x):
    centered = x - x.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + EPSILON)
    return centered * scale, (centered * scale, scale)


def _normalize_backward(saved, gradient):
    y, scale = saved
    along = (gradient * y).mean(axis=-1, keepdims=True)
    return (scale * (gradient - gradient.mean(axis=-1, keepdims=True) - y * along),)


normalize.defvjp(_normalize_forward, _normalize_backward)


def attend_reference(q: Heads, k: Heads, v: Heads, drop: Drop | None = None) -> Heads:
    """Causal attention, softmax(q k^T / sqrt(K)) v. `drop` is dropout of the weights."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", weights if drop is None else drop(weights), v)


def attend(q: Heads, k: Heads, v: Heads, drop: Drop | None = None, implementation: str = "xla") -> Heads:
    # cuDNN's fused kernel never writes the [T, T] table of weights, but cannot drop them with our random numbers.
    if implementation == "cudnn" and drop is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return _attend_to(q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.tri(q.shape[1], dtype=bool), drop)


def _attend_to(q: Heads, k: Cached, v: Cached, seen: Bool[Array, "*any T S"], drop: Drop | None = None) -> Heads:
    # Weights are normalized after they mixed the values: neither pass then divides the [T, S] table, which makes a
    # training step of gpt-tiny a tenth faster on a CPU.
    q = q.swapaxes(1, 2) * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    scale = 1 / weights.sum(axis=-1, keepdims=True)
    weights = weights if drop is None else drop(weights)
    y = scale * jnp.einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return y.astype(v.dtype).swapaxes(1, 2)


def choose_attention(dtype: str, head_size: int) -> str:
    """Return "cudnn" if the first device has a fused kernel for these heads, else "xla".

    cuDNN's needs bfloat16, an NVIDIA GPU from Ampere on, and a head size of at most 128 that 8 divides.
    """
    device = jax.devices()[0]
    nvidia = device.platform == "gpu" and "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8
    return "cudnn" if nvidia and dtype == "bfloat16" and head_size % 8 == 0 and 0 < head_size <= 128 else "xla"


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens one layer has read: `length[b]` of row b."""

    keys: Cached
    values: Cached
    length: Int[Array, " B"]


def attend_cached_reference(q: Heads, k: Heads, v: Heads, cache: KeyValueCache) -> tuple[Heads, KeyValueCache]:
    """Write new keys and values behind those of a cache, and attend to all up to each query's own.

    Returns the cache with the same `length`; the caller knows how many of the new tokens count.
    """
    columns = cache.length[:, None] + jnp.arange(q.shape[1])  # B T
    rows = jnp.arange(len(q))[:, None]
    keys, values = cache.keys.at[rows, :, columns].set(k), cache.values.at[rows, :, columns].set(v)
    scores = jnp.einsum("bthk,bhsk->bhts", q, keys) * q.shape[-1] ** -0.5
    seen = jnp.arange(keys.shape[2]) <= columns[:, None, :, None]  # B 1 T S
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bhts,bhsk->bthk", weights, values), KeyValueCache(keys, values, cache.length)


def attend_cached(q: Heads, k: Heads, v: Heads, cache: KeyValueCache) -> tuple[Heads, KeyValueCache]:
    write = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=1))
    keys, values = (write(old, new.swapaxes(1, 2), cache.length) for old, new in ((cache.keys, k), (cache.values, v)))
    columns, size = cache.length[:, None] + jnp.arange(q.shape[1]), keys.shape[2]
    # A single query reads only the quarter or half of the cache that is in use.
    sizes = sorted({-(-size // 4), -(-size // 2), size}) if q.shape[1] == 1 else [size]

    def over(used: int):
        seen = jnp.arange(used) <= columns[:, None, :, None]
        return lambda: _attend_to(q, keys[:, :, :used], values[:, :, :used], seen)

    smallest = jnp.searchsorted(jnp.array(sizes), columns.max() + 1)
    return jax.lax.switch(smallest, [over(used) for used in sizes]), KeyValueCache(keys, values, cache.length)
