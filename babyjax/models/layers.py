"""The layers the models share. They start as PyTorch's do, since the published series is written in PyTorch."""

import math

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key


class Embedding(nnx.Module):
    """A row per token, from N(0, 1)."""

    def __init__(self, vocab_size: int, features: int, *, key: Key[Array, ""]):
        self.embedding = nnx.Param(jax.random.normal(key, (vocab_size, features)))

    def __call__(self, tokens: Int[Array, "*shape"]) -> Float[Array, "*shape D"]:
        return self.embedding[...][tokens]


class Linear(nnx.Module):
    """`x @ kernel + bias`, both uniform in +-1/sqrt(features_in)."""

    def __init__(self, features_in: int, features_out: int, *, bias: bool = True, key: Key[Array, ""]):
        bound = max(features_in, 1) ** -0.5
        kernel_key, bias_key = jax.random.split(key)
        self.kernel = nnx.Param(
            jax.random.uniform(kernel_key, (features_in, features_out), minval=-bound, maxval=bound)
        )
        self.bias = (
            nnx.Param(jax.random.uniform(bias_key, (features_out,), minval=-bound, maxval=bound)) if bias else None
        )

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape E"]:
        # As one matrix: XLA's backward pass is a third faster on a CPU than over several leading axes.
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ self.kernel[...]
        y = rows.reshape(*x.shape[:-1], rows.shape[-1])
        return y if self.bias is None else y + self.bias[...]
