"""The layers of the networks.

Parameters are float32; a layer computes in the precision of its input. The initialization is PyTorch's, which the
published series uses, or with `std` GPT-2's: N(0, std^2) and biases of 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.models import ops


class Embedding(nnx.Module):
    """One vector per token or position, from N(0, std^2)."""

    def __init__(self, rows: int, features: int, std: float, *, key: Key[Array, ""]):
        self.embedding = nnx.Param(std * jax.random.normal(key, (rows, features)))

    def __call__(self, tokens: Int[Array, "*shape"]) -> Float[Array, "*shape D"]:
        return self.embedding[...][tokens]


class Linear(nnx.Module):
    """`x @ kernel + bias`.

    The kernel is from N(0, std^2) and the bias 0, or both are uniform in +-1/sqrt(features_in) if `std` is None.
    """

    def __init__(self, features_in: int, features_out: int, *, bias: bool, std: float | None, key: Key[Array, ""]):
        bound = max(features_in, 1) ** -0.5
        kernel_key, bias_key = jax.random.split(key)
        if std is None:
            kernel = jax.random.uniform(kernel_key, (features_in, features_out), minval=-bound, maxval=bound)
            offset = jax.random.uniform(bias_key, (features_out,), minval=-bound, maxval=bound)
        else:
            kernel = std * jax.random.normal(kernel_key, (features_in, features_out))
            offset = jnp.zeros(features_out)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(offset) if bias else None

    def __call__(self, x: Float[Array, "*shape D"], dtype: str | None = None) -> Float[Array, "*shape E"]:
        """Return the product in `dtype` (default: that of `x`)."""
        kernel = self.kernel[...].astype(x.dtype)
        return ops.matmul(x, kernel, dtype) if self.bias is None else ops.affine(x, kernel, self.bias[...], dtype)

    def add_bias(self, y: Float[Array, "*shape E"]) -> Float[Array, "*shape E"]:
        """Return `y` plus the bias, if there is one."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def apply_together(x: Float[Array, "*shape D"], layers: Sequence[Linear]) -> list[Float[Array, "*shape _"]]:
    """Return `layer(x)` of every layer, by one product if `x` has many rows."""
    products = ops.matmuls(x, [layer.kernel[...] for layer in layers])
    return [layer.add_bias(y) for layer, y in zip(layers, products, strict=True)]


class Norm(nnx.Module):
    """RMSNorm: a mean square of 1 over the last axis, in float32, times `scale` (Zhang and Sennrich 2019).

    With `centered` the mean is subtracted first, which makes it LayerNorm (Ba et al. 2016), and with `bias` a learned
    vector is added at the end.
    """

    def __init__(self, features: int, epsilon: float, *, centered: bool = False, bias: bool = False):
        self.epsilon, self.centered = epsilon, centered
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        y = x.astype(jnp.float32)
        y = ops.normalize(y - y.mean(axis=-1, keepdims=True) if self.centered else y, self.epsilon) * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Set each number to 0 with probability `rate` and divide the others by 1 - rate. Without a key return `x`."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
