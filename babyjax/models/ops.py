"""Matrix product, normalization and attention: a short reference that says what is computed, then the fast form.

The models call the fast forms; `tests/models/test_ops.py` compares the values and gradients of every pair.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Queries = Float[Array, "B T H K"]
Heads = Float[Array, "B T G K"]  # keys or values: G divides H, and each serves the H / G next to each other
Cached = Float[Array, "B G S K"]
Weights = Float[Array, "B H T S"]  # of attention
ROWS_TOGETHER = 64  # of a matrix, from which its products with several kernels are computed as one
WIDE = 2048  # columns of a product from which its bias is a row of the kernel
TILE = 64  # columns of a product that a GPU works on together
# On a CPU XLA removes barriers before it fuses operations, unless a program is compiled with these options.
KEEP_BARRIERS: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse_barrier_expander"}
Change = Callable[[Weights], Weights]
_TARGET: ContextVar[Any] = ContextVar("target", default=None)


def target() -> Any:
    """Return the device that programs are for: the first one here, or that of `compiled_for`."""
    return _TARGET.get() or jax.devices()[0]


@contextmanager
def compiled_for(device: Any) -> Iterator[None]:
    """Build models and programs for a device that need not be here."""
    token = _TARGET.set(device)
    try:
        yield
    finally:
        _TARGET.reset(token)


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
    widens = dtype is not None and jnp.dtype(dtype).itemsize > x.dtype.itemsize
    tall = kernel.shape[0] > kernel.shape[1] and target().platform == "cpu"
    product: Any = _widening_matmul if widens else _tall_matmul if tall else matmul_reference
    return product(rows, kernel, dtype).reshape(*x.shape[:-1], kernel.shape[-1])


def affine_reference(
    x: Float[Array, "*shape D"], kernel: Float[Array, "D E"], bias: Float[Array, " E"], dtype: str | None = None
) -> Float[Array, "*shape E"]:
    """Return `x @ kernel + bias` in `dtype` (default: that of `x`)."""
    return matmul_reference(x, kernel, dtype) + bias.astype(dtype or x.dtype)


def affine(
    x: Float[Array, "*shape D"], kernel: Float[Array, "D E"], bias: Float[Array, " E"], dtype: str | None = None
) -> Float[Array, "*shape E"]:
    # On a CPU, adding a bias to a large product and summing its gradient are passes over memory: a seventh of a step of
    # v1 with 6,104 tokens. As one more row of the kernel the bias is part of the product. That copies the kernel, so
    # the product must have many more rows.
    depth, columns = kernel.shape
    rows, result = math.prod(x.shape[:-1]), dtype or x.dtype
    if target().platform != "cpu" or x.dtype != result or columns < WIDE or rows < 4 * depth:
        return matmul(x, kernel, dtype) + bias.astype(result)
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return matmul(jnp.concatenate([x, ones], axis=-1), jnp.concatenate([kernel, bias.astype(x.dtype)[None]]), dtype)


def matmuls_reference(
    x: Float[Array, "*shape D"], kernels: Sequence[Float[Array, "D _"]]
) -> list[Float[Array, "*shape _"]]:
    """Return the product of `x` and each kernel, in the precision of `x`."""
    return [matmul_reference(x, kernel.astype(x.dtype)) for kernel in kernels]


def matmuls(x: Float[Array, "*shape D"], kernels: Sequence[Float[Array, "D _"]]) -> list[Float[Array, "*shape _"]]:
    # As one product, which makes a training step of llama-tiny 5 % faster on a CPU. For few rows, as in decoding, the
    # copy of the kernels would cost more than it saves.
    if math.prod(x.shape[:-1]) < ROWS_TOGETHER:
        return [matmul(x, kernel.astype(x.dtype)) for kernel in kernels]
    return _matmul_together(x, kernels)


# Recomputed, so that the backward pass of scanned blocks keeps no copy of the kernels of all blocks.
@partial(jax.checkpoint, prevent_cse=False)
def _matmul_together(x, kernels):
    together = jnp.concatenate([kernel.astype(x.dtype) for kernel in kernels], axis=1)
    *ends, _ = accumulate(kernel.shape[1] for kernel in kernels)
    return jnp.split(matmul(x, together), ends, axis=-1)


def _with_whole_tiles(x: Float[Array, "D E"]) -> Float[Array, "D F"]:
    """Add columns of zeros for a GPU, whose products of 50,257 columns are slower than those of 50,304."""
    return x if target().platform != "gpu" else jnp.pad(x, ((0, 0), (0, -x.shape[1] % TILE)))


# The gradient of float32 logits is rounded to the bfloat16 of their factors before it meets them, since a
# product of both types is computed in float32, which is slower on a GPU.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _widening_matmul(x: Float[Array, "N D"], kernel: Float[Array, "D E"], dtype: str) -> Float[Array, "N E"]:
    return matmul_reference(x, _with_whole_tiles(kernel), dtype)[:, : kernel.shape[1]]


def _widening_forward(x, kernel, dtype):
    return _widening_matmul(x, kernel, dtype), (x, kernel)


def _widening_backward(dtype, saved, gradient):
    x, kernel = saved
    gradient = _with_whole_tiles(gradient.astype(x.dtype))
    of_kernel = matmul_reference(x.T, gradient)[:, : kernel.shape[1]]
    return matmul_reference(gradient, _with_whole_tiles(kernel).T), of_kernel


_widening_matmul.defvjp(_widening_forward, _widening_backward)


# On a CPU a product that sums over the rows of both factors is faster if its result is wide, so the gradient of a tall
# kernel is computed transposed. Without the barrier XLA would transpose the factors instead of the result.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tall_matmul(x: Float[Array, "N D"], kernel: Float[Array, "D E"], dtype: str | None) -> Float[Array, "N E"]:
    return matmul_reference(x, kernel, dtype)


def _tall_forward(x, kernel, dtype):
    return _tall_matmul(x, kernel, dtype), (x, kernel)


def _tall_backward(dtype, saved, gradient):
    x, kernel = saved
    of_kernel = jax.lax.optimization_barrier(matmul_reference(gradient.T, x)).T
    return matmul_reference(gradient, kernel.T), of_kernel


_tall_matmul.defvjp(_tall_forward, _tall_backward)


def cross_entropy_reference(logits: Float[Array, "*shape V"], targets: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return -log softmax(logits) of the targets, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


# For accelerators, with a gradient by hand: one pass over the logits. The derived one also scatters into a second table
# of their size, but keeps their exponentials, which makes a step of v1 a fifth faster on a CPU.
cross_entropy = jax.custom_vjp(cross_entropy_reference)


def _cross_entropy_forward(logits, targets):
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return (total - chosen)[..., 0], (logits, total, targets)


def _cross_entropy_backward(saved, gradient):
    logits, total, targets = saved
    hits = targets[..., None] == jnp.arange(logits.shape[-1])
    return (jnp.exp(logits - total) - hits) * gradient[..., None], None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def normalize_reference(x: Float[Array, "*shape D"], epsilon: float) -> Float[Array, "*shape D"]:
    """Scale `x` to a mean square of 1 over the last axis."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)


def normalize(x: Float[Array, "*shape D"], epsilon: float) -> Float[Array, "*shape D"]:
    # As one flat matrix: on a CPU the sums of a row are up to eight times slower after an axis of size 1, as where all
    # queries share one key.
    return _normalize_rows(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), epsilon).reshape(x.shape)


# With a gradient by hand: on a CPU the derived one passes over the activations more often.
_normalize_rows = jax.custom_vjp(normalize_reference, nondiff_argnums=(1,))


def _normalize_forward(x, epsilon):
    scale = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)
    return x * scale, (x * scale, scale)


def _normalize_backward(epsilon, saved, gradient):
    y, scale = saved
    return (scale * (gradient - y * (gradient * y).mean(axis=-1, keepdims=True)),)


_normalize_rows.defvjp(_normalize_forward, _normalize_backward)


def rotate(x: Queries, positions: Int[Array, "*B T"], base: float) -> Queries:
    """Turn each pair (x[i], x[i + K/2]) by the angle position * base^(-2i/K) (Su et al. 2021, "rotary").

    The product of a query and a key then depends on the distance of their positions.
    """
    first, second = jnp.split(x, 2, axis=-1)
    half = first.shape[-1]
    angles = positions[..., None, None] * base ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend_reference(q: Queries, k: Heads, v: Heads, drop: Change | None = None, see: Change | None = None) -> Queries:
    """Causal attention, softmax(q k^T / sqrt(K)) v. `see` may change the weights, and `drop` is their dropout."""
    shared = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, shared, axis=2), jnp.repeat(v, shared, axis=2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf))
    for change in (see, drop):
        weights = weights if change is None else change(weights)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def attend(
    q: Queries,
    k: Heads,
    v: Heads,
    drop: Change | None = None,
    see: Change | None = None,
    implementation: str = "xla",
) -> Queries:
    # cuDNN's fused kernel never writes the [T, T] table of weights, so nothing can be done to them.
    if implementation == "cudnn" and drop is None and see is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return _attend_to(q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.tri(q.shape[1], dtype=bool), drop, see)


def _attend_to(
    q: Queries,
    k: Cached,
    v: Cached,
    seen: Bool[Array, "*any T S"],
    drop: Change | None = None,
    see: Change | None = None,
) -> Queries:
    # The H / G queries that share a key are rows of one product. The output is divided by the sum of its weights, not
    # the weights themselves, so neither pass divides the [T, S] table; and as a flat matrix, as in `normalize`.
    (batch, length, heads, size), groups = q.shape, k.shape[1]
    shared = heads // groups
    q = q.swapaxes(1, 2).reshape(batch, groups, shared * length, size) * size**-0.5
    scores = jnp.einsum("bgtk,bgsk->bgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(jnp.tile(seen, (shared, 1)), scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    scale = 1 / weights.sum(axis=-1, keepdims=True)
    by_head = (batch, heads, length, k.shape[2])
    if see is not None:
        weights, scale = see((weights * scale).reshape(by_head)).reshape(weights.shape), jnp.ones_like(scale)
    weights = weights if drop is None else drop(weights.reshape(by_head)).reshape(weights.shape)
    y = jnp.einsum("bgts,bgsk->bgtk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    y = y.reshape(batch * heads * length, size) * scale.reshape(-1, 1)
    return y.astype(v.dtype).reshape(batch, heads, length, size).swapaxes(1, 2)


def choose_attention(dtype: str, head_size: int) -> str:
    """Return "cudnn" if the target has a fused kernel for these heads, else "xla".

    cuDNN's needs bfloat16, an NVIDIA GPU from Ampere on, and a head size of at most 128 that 8 divides.
    """
    device = target()
    nvidia = device.platform == "gpu" and "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8
    return "cudnn" if nvidia and dtype == "bfloat16" and head_size % 8 == 0 and 0 < head_size <= 128 else "xla"


def shard_rows(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Keep the rows of a batch on their devices, if `jax.set_mesh` has set a mesh with an axis "data".

    Without this a compiler may gather the activations of all devices where weights are split.
    """
    if "data" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec("data"))


def computed_once(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x`, which on a CPU no operation computes again if the program is compiled with `KEEP_BARRIERS`.

    Otherwise XLA sums the whole residual stream again in every operation that reads it.
    """
    return jax.lax.optimization_barrier(x) if target().platform == "cpu" else x


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens one layer has read: `length[b]` of row b."""

    keys: Cached
    values: Cached
    length: Int[Array, " B"]


def attend_cached_reference(q: Queries, k: Heads, v: Heads, cache: KeyValueCache) -> tuple[Queries, KeyValueCache]:
    """Write new keys and values behind those of a cache, and attend to all up to each query's own.

    Returns the cache with the same `length`; the caller knows how many of the new tokens count.
    """
    columns = cache.length[:, None] + jnp.arange(q.shape[1])  # B T
    rows = jnp.arange(len(q))[:, None]
    keys, values = cache.keys.at[rows, :, columns].set(k), cache.values.at[rows, :, columns].set(v)
    repeated = [jnp.repeat(part, q.shape[2] // k.shape[2], axis=1) for part in (keys, values)]
    scores = jnp.einsum("bthk,bhsk->bhts", q, repeated[0]) * q.shape[-1] ** -0.5
    seen = jnp.arange(keys.shape[2]) <= columns[:, None, :, None]  # B 1 T S
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bhts,bhsk->bthk", weights, repeated[1]), KeyValueCache(keys, values, cache.length)


def attend_cached(q: Queries, k: Heads, v: Heads, cache: KeyValueCache) -> tuple[Queries, KeyValueCache]:
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
