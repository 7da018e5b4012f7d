"""BabyGPT v1: an embedding and a linear head, a bigram in neural disguise and the first rung towards a GPT."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.errors import ConfigError
from babyjax.models.layers import Embedding, Linear


class BabyGPT(nnx.Module):
    """`logits = embedding[tokens] @ kernel + bias`: a V x V matrix of rank n_embd, plus one row.

    An `n_embd` of 0 is the unigram model: the bias alone. Raises `ConfigError` for sizes that cannot be.
    """

    receptive_field = 1

    def __init__(self, vocab_size: int, n_embd: int = 32, *, bias: bool = True, key: Key[Array, ""]):
        if vocab_size < 1 or n_embd < 0:
            raise ConfigError(f"no model has a vocabulary of {vocab_size} and a width of {n_embd}")
        embedding_key, head_key = jax.random.split(key)
        self.token_embedding = Embedding(vocab_size, n_embd, key=embedding_key)
        self.lm_head = Linear(n_embd, vocab_size, bias=bias, key=head_key)

    @classmethod
    def from_parameters(
        cls, embedding: Float[Array, "V D"], kernel: Float[Array, "D V"], bias: Float[Array, " V"] | None = None
    ):
        """The network with these parameters."""
        model = jax.eval_shape(lambda: cls(*embedding.shape, bias=bias is not None, key=jax.random.key(0)))
        model.token_embedding.embedding = nnx.Param(embedding)
        model.lm_head.kernel = nnx.Param(kernel)
        model.lm_head.bias = None if bias is None else nnx.Param(bias)
        return model

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.lm_head(self.token_embedding(tokens))
