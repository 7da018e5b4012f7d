"""The layers the models share.

Parameters are float32; a layer computes in the precision of what it reads. They start as PyTorch's layers do, since the
published series is written in PyTorch, or where `std` is given from N(0, std^2) with biases of 0, as GPT-2 does.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key


class Embedding(nnx.Module):
    """A row per token, or per position, from N(0, std^2)."""

    def __init__(self, rows: int, features: int, std: float = 1.0, *, key: Key[Array, ""]):
        self.embedding = nnx.Param(std * jax.random.normal(key, (rows, features)))

    def __call__(self, tokens: Int[Array, "*shape"]) -> Float[Array, "*shape D"]:
        return self.embedding[...][tokens]


class Linear(nnx.Module):
    """`x @ kernel + bias`, both uniform in +-1/sqrt(features_in) where no `std` is given."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        bias: bool = True,
        std: float | None = None,
        key: Key[Array, ""],
    ):
        bound = max(features_in, 1) ** -0.5
        kernel_key, bias_key = jax.random.split(key)
        if std is None:
            kernel = jax.random.uniform(kernel_key, (features_in, features_out), minval=-bound, maxval=bound)
            start = jax.random.uniform(bias_key, (features_out,), minval=-bound, maxval=bound)
        else:
            kernel = std * jax.random.normal(kernel_key, (features_in, features_out))
            start = jnp.zeros(features_out)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(start) if bias else None

    def __call__(self, x: Float[Array, "*shape D"], dtype: str | None = None) -> Float[Array, "*shape E"]:
        """The product is accumulated in float32, and given in `dtype` (default: that of `x`)."""
        y = matmul(x, self.kernel[...].astype(x.dtype), dtype)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def matmul(x: Float[Array, "*shape D"], kernel: Float[Array, "D E"], dtype: str | None = None):
    """`x @ kernel` over leading axes, in `dtype` (default: that of `x`)."""
    # As one matrix: XLA's backward pass is a third faster on a CPU than over several leading axes.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = jnp.matmul(rows, kernel, preferred_element_type=dtype or x.dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


class LayerNorm(nnx.Module):
    """Mean 0 and variance 1 over the last axis, in float32, then `scale` and `bias` (Ba et al. 2016)."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        return (_normalise(x.astype(jnp.float32)) * self.scale[...] + self.bias[...]).astype(x.dtype)


@jax.custom_vjp
def _normalise(x):
    return _normalise_forward(x)[0]


def _normalise_forward(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    return centred * scale, (centred * scale, scale)


def _normalise_backward(saved, gradient):
    # By hand, for speed: what is derived from the lines above passes over the activations more often.
    y, scale = saved
    along = (gradient * y).mean(axis=-1, keepdims=True)
    return (scale * (gradient - gradient.mean(axis=-1, keepdims=True) - y * along),)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Each number 0 with probability `rate`, the others the larger for it; `x` itself without a key."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


Heads = Float[Array, "B T H K"]
Cached = Float[Array, "B H S K"]


def attend(q: Heads, k: Heads, v: Heads, rate: float, key: Key[Array, ""] | None) -> Heads:
    """Causal attention, softmax(q k^T / sqrt(K)) v; with a key weights are dropped with probability `rate`."""
    dropping = key is not None and rate > 0
    if not dropping and _in_reach_of_cudnn(q):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    seen = jnp.tri(q.shape[1], dtype=bool)
    return _mix(q, k.swapaxes(1, 2), v.swapaxes(1, 2), seen, (lambda w: dropout(w, rate, key)) if dropping else None)


def _in_reach_of_cudnn(q: Heads) -> bool:
    """Whether cuDNN has a fused kernel: bfloat16, an NVIDIA GPU from Ampere on, heads of 8 to 128 by 8."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "NVIDIA" not in device.device_kind or q.dtype != jnp.bfloat16:
        return False
    return float(device.compute_capability) >= 8 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def attend_cached(q: Heads, keys: Cached, values: Cached, columns: Int[Array, "B T"]) -> Heads:
    """Attention of new queries, each in a column of a cache, over the columns up to its own."""
    size = keys.shape[2]
    # One token at a time, only the quarter or half of the cache that is in use is read.
    sizes = sorted({-(-size // 4), -(-size // 2), size}) if q.shape[1] == 1 else [size]

    def over(used):
        seen = jnp.arange(used) <= columns[:, None, :, None]
        return lambda: _mix(q, keys[:, :, :used], values[:, :, :used], seen)

    return jax.lax.switch(jnp.searchsorted(jnp.array(sizes), columns.max() + 1), [over(used) for used in sizes])


def _mix(q: Heads, k: Cached, v: Cached, seen: Bool[Array, "*any T S"], drop=None) -> Heads:
    # Weights are normalised after they have mixed the values, not before: on a CPU a training step of gpt-tiny is a
    # tenth faster for it, since neither pass divides the [T, S] table.
    q = q.swapaxes(1, 2) * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    scale = 1 / weights.sum(axis=-1, keepdims=True)
    weights = weights if drop is None else drop(weights)
    y = scale * jnp.einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return y.astype(v.dtype).swapaxes(1, 2)
