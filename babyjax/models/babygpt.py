"""BabyGPT: one network, from v1, an embedding and a linear head, to GPT-2. A rung of the ladder is a choice of ideas.

Read it from the bottom up: `BabyGPT.__call__` is what it computes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.errors import ConfigError
from babyjax.models.layers import Cached, Embedding, Heads, LayerNorm, Linear, attend, attend_cached, dropout, matmul

# Mixes positions: queries, keys and values to what the heads say. The third kind of argument is a key for dropout.
Mix = Callable[[Heads, Heads, Heads, Key[Array, ""] | None], Heads]
GPT2_STD = 0.02
ACTIVATIONS = {"relu": jax.nn.relu, "gelu": partial(jax.nn.gelu, approximate=True)}


class Attention(nnx.Module):
    """Queries, keys and values of every head from one matrix, and the way back."""

    def __init__(self, n_embd: int, n_head: int, bias: bool, projection: bool, std, out_std, *, key: Key[Array, ""]):
        in_key, out_key = jax.random.split(key)
        self.query_key_value = Linear(n_embd, 3 * n_embd, bias=bias, std=std, key=in_key)
        self.projection = Linear(n_embd, n_embd, std=out_std, key=out_key) if projection else None
        self.n_head = n_head

    def __call__(self, x: Float[Array, "B T D"], mix: Mix, key: Key[Array, ""] | None) -> Float[Array, "B T D"]:
        shape = (*x.shape[:2], self.n_head, x.shape[-1] // self.n_head)
        q, k, v = (part.reshape(shape) for part in jnp.split(self.query_key_value(x), 3, axis=-1))
        y = mix(q, k, v, key).reshape(x.shape)
        return y if self.projection is None else self.projection(y)


class FeedForward(nnx.Module):
    """Every position on its own: a matrix and an activation, and with a projection a matrix back."""

    def __init__(self, n_embd: int, times: int, activation: str, projection: bool, std, out_std, *, key):
        in_key, out_key = jax.random.split(key)
        self.hidden = Linear(n_embd, times * n_embd, std=std, key=in_key)
        self.projection = Linear(times * n_embd, n_embd, std=out_std, key=out_key) if projection else None
        self.activation = activation

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = self.hidden(x)
        y = ACTIVATIONS[self.activation](y)
        return y if self.projection is None else self.projection(y)


class Block(nnx.Module):
    """Attention, then feed-forward, each with what a rung puts before (norm), after (dropout) and around (residual)."""

    def __init__(self, attention: Attention, feed_forward: FeedForward | None, norm: bool, residual: bool, rate: float):
        width = attention.query_key_value.kernel.shape[0]
        self.attention_norm = LayerNorm(width) if norm else None
        self.attention = attention
        self.feed_forward_norm = LayerNorm(width) if norm and feed_forward else None
        self.feed_forward = feed_forward
        self.residual = residual
        self.dropout = rate

    def __call__(self, x: Float[Array, "B T D"], mix: Mix, key: Key[Array, ""] | None = None) -> Float[Array, "B T D"]:
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        read = x if self.attention_norm is None else self.attention_norm(x)
        x = self._add(x, dropout(self.attention(read, mix, keys[0]), self.dropout, keys[1]))
        if self.feed_forward is None:
            return x
        read = x if self.feed_forward_norm is None else self.feed_forward_norm(x)
        return self._add(x, dropout(self.feed_forward(read), self.dropout, keys[2]))

    def _add(self, x, y):
        return x + y if self.residual else y


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, a pair of arrays a layer; `length`, how many tokens of each row."""

    layers: tuple[tuple[Cached, Cached], ...]
    length: Int[Array, " B"]


class BabyGPT(nnx.Module):
    """`logits = head(blocks(token_embedding[tokens] + position_embedding))`; without further ideas, v1.

    v1 is `embedding[tokens] @ kernel + bias`, a V x V matrix of rank n_embd plus one row; an `n_embd` of 0 is then the
    unigram model. The ideas are those of `schema.BabyGPTConfig`, by the same names. Blocks are stacked, a leading axis
    of n_layer, and scanned. Raises `ConfigError` for sizes that cannot be.
    """

    def __init__(
        self,
        vocab_size: int,
        n_embd: int = 32,
        *,
        bias: bool = True,
        block_size: int = 8,
        position: bool = False,
        n_layer: int = 0,
        n_head: int = 1,
        feed_forward: int = 0,
        activation: str = "relu",
        residual: bool = False,
        projection: bool = False,
        norm: bool = False,
        dropout: float = 0.0,
        attention_bias: bool = False,
        tied: bool = False,
        start: str = "pytorch",
        dtype: str = "float32",
        unroll: int = 1,
        remat: bool = False,
        key: Key[Array, ""],
    ):
        if vocab_size < 1 or n_embd < 0:
            raise ConfigError(f"no model has a vocabulary of {vocab_size} and a width of {n_embd}")
        if n_layer and (n_embd == 0 or n_embd % n_head):
            raise ConfigError(f"{n_head} heads cannot share a width of {n_embd}: n_head must divide n_embd")
        if feed_forward > 1 and not projection:
            raise ConfigError("a feed-forward wider than the embedding needs a projection back")
        self.block_size, self.n_head, self.dropout, self.dtype = block_size, n_head, dropout, dtype
        self.unroll, self.remat = unroll, remat
        self.receptive_field = block_size if position or n_layer else 1
        embedding_key, head_key = jax.random.split(key)
        position_key, blocks_key = (jax.random.fold_in(key, index) for index in (2, 3))
        std = GPT2_STD if start == "gpt2" else None
        self.token_embedding = Embedding(vocab_size, n_embd, std or 1.0, key=embedding_key)
        self.position_embedding = Embedding(block_size, n_embd, std or 1.0, key=position_key) if position else None

        def block(key: Key[Array, ""]) -> Block:
            attention_key, feed_forward_key = jax.random.split(key)
            stds = (std, std and std / (2 * n_layer) ** 0.5)
            attention = Attention(n_embd, n_head, attention_bias, projection, *stds, key=attention_key)
            second = (
                FeedForward(n_embd, feed_forward, activation, projection, *stds, key=feed_forward_key)
                if feed_forward
                else None
            )
            return Block(attention, second, norm, residual, dropout)

        self.blocks = jax.vmap(block)(jax.random.split(blocks_key, n_layer)) if n_layer else None
        self.n_layer = n_layer
        self.norm = LayerNorm(n_embd) if norm else None
        self.lm_head = None if tied else Linear(n_embd, vocab_size, bias=bias, std=std, key=head_key)
        self.lm_head_bias = nnx.Param(jnp.zeros(vocab_size)) if tied and bias else None

    @classmethod
    def from_parameters(
        cls, embedding: Float[Array, "V D"], kernel: Float[Array, "D V"], bias: Float[Array, " V"] | None = None
    ):
        """The v1 network with these parameters."""
        model = jax.eval_shape(lambda: cls(*embedding.shape, bias=bias is not None, key=jax.random.key(0)))
        model.token_embedding.embedding = nnx.Param(embedding)
        model.lm_head.kernel = nnx.Param(kernel)
        model.lm_head.bias = None if bias is None else nnx.Param(bias)
        return model

    def _embed(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            table = self.position_embedding.embedding[...]
            x = x + (table[: tokens.shape[1]] if positions is None else table[positions])
        return x.astype(self.dtype)

    def _head(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        if self.norm is not None:
            x = self.norm(x)
        if self.lm_head is not None:
            return self.lm_head(x, "float32")
        logits = matmul(x, self.token_embedding.embedding[...].T.astype(x.dtype), "float32")
        return logits if self.lm_head_bias is None else logits + self.lm_head_bias[...]

    def __call__(
        self, tokens: Int[Array, "B T"], *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each. `dropout_key` is given in training, where the rung has dropout.

        Raises `ConfigError` for more tokens than a block has.
        """
        length = tokens.shape[1]
        bounded = self.blocks is not None or self.position_embedding is not None
        if bounded and length > self.block_size:
            raise ConfigError(f"{length} tokens do not fit a block of {self.block_size}")
        x = self._embed(tokens)
        if self.blocks is not None:
            keys = None if dropout_key is None else jax.random.split(dropout_key, self.n_layer)

            def layer(x, block_and_key):
                block, key = block_and_key
                return block(x, lambda q, k, v, key: attend(q, k, v, self.dropout, key), key), None

            scanned = jax.checkpoint(layer) if self.remat else layer
            x, _ = jax.lax.scan(scanned, x, (self.blocks, keys), unroll=min(self.unroll, self.n_layer))
        return self._head(x)

    def empty_cache(self, batch: int) -> Cache:
        """A cache in which nothing is read, for `batch` rows of up to `block_size` tokens."""
        shape = (batch, self.n_head, self.block_size, self.token_embedding.embedding.shape[1] // self.n_head)
        layer = (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return Cache((layer,) * self.n_layer, jnp.zeros(batch, jnp.int32))

    def split_blocks(self) -> tuple[Block, ...]:
        """The blocks one by one; inside a loop that calls `extend`, slicing them each time would cost a copy."""
        return tuple(jax.tree.map(lambda leaf, index=index: leaf[index], self.blocks) for index in range(self.n_layer))

    def extend(
        self,
        cache: Cache,
        tokens: Int[Array, "B T"],
        counts: Int[Array, " B"] | None = None,
        blocks: tuple[Block, ...] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Read the next `counts[b]` (default: all) of each row's `tokens`: the logits after the last, and the cache.

        Rows may hold different numbers of tokens; none may come to hold more than `block_size` with all of `tokens`.
        `blocks` are those of `split_blocks`.
        """
        batch, length = tokens.shape
        counts = jnp.full(batch, length, jnp.int32) if counts is None else counts
        columns = cache.length[:, None] + jnp.arange(length)
        write = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=1))
        x, layers = self._embed(tokens, columns), []
        for block, (keys, values) in zip(blocks or self.split_blocks(), cache.layers, strict=True):

            def mix(q, k, v, _, keys=keys, values=values):
                layer = write(keys, k.swapaxes(1, 2), cache.length), write(values, v.swapaxes(1, 2), cache.length)
                layers.append(layer)
                return attend_cached(q, *layer, columns)

            x = block(x, mix)
        last = jnp.take_along_axis(x, (counts - 1)[:, None, None], axis=1)
        return self._head(last)[:, 0], Cache(tuple(layers), cache.length + counts)
