"""BabyGPT: one network, from v1, an embedding and a linear head, to today's GPT. A rung of the ladder is a config.

Read it from the bottom up: `BabyGPT.__call__` is what it computes. Axes: B rows of a batch, T tokens, D = n_embd,
H heads of size K, of which H / G share their keys and values, F units of the feed-forward, V tokens of the vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.config import BabyGPTConfig
from babyjax.errors import ConfigError
from babyjax.models import ops
from babyjax.models.base import Decoder, LanguageModel
from babyjax.models.layers import Embedding, Linear, Norm, apply_together, dropout
from babyjax.models.ops import KeyValueCache
from babyjax.trees import named_arrays

GPT2_STD = 0.02
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}
Edit = Callable[[str, Any, Any], Any]
Tap = Callable[[str, Any], Any]


def _pass(name: str, value: Any) -> Any:
    return value


def initial_std(config: BabyGPTConfig, *, into_residual: bool = False) -> float | None:
    """The standard deviation of a kernel of GPT-2, smaller if its product is added to the residual; None as PyTorch."""
    if config.initialization == "pytorch":
        return None
    return GPT2_STD / (2 * config.n_layer) ** 0.5 if into_residual else GPT2_STD


def make_norm(config: BabyGPTConfig) -> Norm:
    """The norm before a part of the network."""
    layer = config.norm == "layer"
    return Norm(config.n_embd, config.norm_eps, centered=layer, bias=layer and config.bias)


def make_projection(config: BabyGPTConfig, width: int, key: Key[Array, ""]) -> Linear | None:
    """Return the layer from `width` features back to the residual, None if the config has none."""
    std = initial_std(config, into_residual=True)
    return Linear(width, config.n_embd, bias=config.bias, std=std, key=key) if config.projection else None


class Attention(nnx.Module):
    """Causal attention with H heads of queries and G heads of keys and values."""

    def __init__(self, config: BabyGPTConfig, key: Key[Array, ""]):
        keys, size = jax.random.split(key, 4), config.head_width
        into = partial(Linear, config.n_embd, bias=config.qkv_bias, std=initial_std(config))
        self.config = config
        self.query = into(config.attention_width, key=keys[0])
        self.key = into(config.kv_heads * size, key=keys[1])
        self.value = into(config.kv_heads * size, key=keys[2])
        self.query_norm = Norm(size, config.norm_eps) if config.qk_norm else None
        self.key_norm = Norm(size, config.norm_eps) if config.qk_norm else None
        self.projection = make_projection(config, config.attention_width, keys[3])

    def __call__(
        self, x: Float[Array, "B T D"], key: Key[Array, ""] | None, cache: KeyValueCache | None, tap: Tap
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        config, (batch, length, _) = self.config, x.shape
        q, k, v = (
            part.reshape(batch, length, -1, config.head_width)
            for part in apply_together(x, (self.query, self.key, self.value))
        )  # B T H K, B T G K, B T G K
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if config.position == "rotary":
            positions = jnp.arange(length) + (0 if cache is None else cache.length[:, None])
            q, k = (ops.rotate(part, positions, config.rotary_base) for part in (q, k))
        if cache is None:
            drop = None if key is None else partial(dropout, rate=config.dropout, key=key)
            see = None if tap is _pass else partial(tap, "attention_weights")
            y = ops.attend(q, k, v, drop, see, config.attention)
        else:
            y, cache = ops.attend_cached(q, k, v, cache)
        y = tap("heads", y).reshape(batch, length, -1)
        return y if self.projection is None else self.projection(y), cache


class FeedForward(nnx.Module):
    """At every position a linear layer and an activation, or an activated gate times a linear layer ("SwiGLU", Shazeer
    2020), and with a projection a second linear layer."""

    def __init__(self, config: BabyGPTConfig, key: Key[Array, ""]):
        in_key, out_key = jax.random.split(key)
        into = partial(Linear, config.n_embd, config.hidden_width, bias=config.bias, std=initial_std(config))
        self.config = config
        self.hidden = into(key=in_key)
        self.gate = into(key=jax.random.fold_in(key, 2)) if config.gated else None
        self.projection = make_projection(config, config.hidden_width, out_key)

    def __call__(self, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T D"]:
        activation = ACTIVATIONS[self.config.activation]
        if self.gate is None:
            y = activation(self.hidden(x))
        else:
            hidden, gate = apply_together(x, (self.hidden, self.gate))
            y = activation(gate) * hidden
        y = tap("hidden", y)  # B T F
        return y if self.projection is None else self.projection(y)


class Block(nnx.Module):
    """Attention, then feed-forward, each with what the config puts before (norm), after (dropout) and around it."""

    def __init__(self, config: BabyGPTConfig, key: Key[Array, ""]):
        attention_key, feed_forward_key = jax.random.split(key)
        norm = config.norm != "none"
        self.config = config
        self.attention_norm = make_norm(config) if norm else None
        self.attention = Attention(config, attention_key)
        self.feed_forward_norm = make_norm(config) if norm and config.feed_forward else None
        self.feed_forward = FeedForward(config, feed_forward_key) if config.feed_forward else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        key: Key[Array, ""] | None = None,
        cache: KeyValueCache | None = None,
        tap: Tap = _pass,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """Return the output, and the cache with the keys and values of `x` added. A `key` switches dropout on."""
        rate, residual = self.config.dropout, self.config.residual
        keys = (None, None, None) if key is None else jax.random.split(key, 3)

        y = x if self.attention_norm is None else self.attention_norm(x)
        y, cache = self.attention(y, keys[0], cache, tap)
        y = tap("attention", dropout(y, rate, keys[1]))
        x = ops.computed_once(x + y) if residual else y

        if self.feed_forward is not None:
            y = x if self.feed_forward_norm is None else self.feed_forward_norm(x)
            y = self.feed_forward(y, tap)
            y = tap("feed_forward", dropout(y, rate, keys[2]))
            x = ops.computed_once(x + y) if residual else y
        return tap("residual", x), cache


class Cache(NamedTuple):
    """Keys and values of every layer, and how many tokens each row has read."""

    layers: tuple[tuple[ops.Cached, ops.Cached], ...]
    length: Int[Array, " B"]


class BabyGPTDecoder(Decoder):
    """Reads every token once and keeps its keys and values."""

    model: "BabyGPT"

    def __init__(self, model: "BabyGPT"):
        super().__init__(model)
        # Split once: slicing the stacked blocks inside a loop of `extend` would copy them every time.
        self.blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks) for i in range(model.config.n_layer)]

    @property
    def capacity(self) -> int | None:
        return self.model.max_length

    def init_cache(self, batch: int) -> Cache:
        config = self.model.config
        empty = jnp.zeros((batch, config.kv_heads, config.block_size, config.head_width), config.dtype)
        return Cache(((empty, empty),) * config.n_layer, jnp.zeros(batch, jnp.int32))

    def extend(
        self, cache: Cache, tokens: Int[Array, "B T"], counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Cache]:
        batch, length = tokens.shape
        counts = jnp.full(batch, length, jnp.int32) if counts is None else counts
        x = self.model.embed(tokens, cache.length[:, None] + jnp.arange(length))  # B T D
        layers = []
        for block, (keys, values) in zip(self.blocks, cache.layers, strict=True):
            x, (keys, values, _) = block(x, cache=KeyValueCache(keys, values, cache.length))
            layers.append((keys, values))
        last = jnp.take_along_axis(x, (counts - 1)[:, None, None], axis=1)  # B 1 D
        return self.model.head(last)[:, 0], Cache(tuple(layers), cache.length + counts)


class BabyGPT(LanguageModel):
    """`logits = head(blocks(token_embedding[tokens] + position_embedding))`; without further ideas, v1.

    v1 is `embedding[tokens] @ kernel + bias`, a V x V matrix of rank n_embd plus one row; an `n_embd` of 0 is then the
    unigram model. Blocks are stacked along a leading axis of n_layer, and scanned.

    Raises: ConfigError if the config has no room for `vocab_size` tokens.
    """

    def __init__(self, config: BabyGPTConfig, vocab_size: int, key: Key[Array, ""]):
        room = vocab_size if config.vocab_size is None else config.vocab_size
        if vocab_size < 1:
            raise ConfigError(f"vocab_size must be at least 1, got {vocab_size}")
        if room < vocab_size:
            raise ConfigError(f"model.vocab_size={room} has no room for the {vocab_size} tokens of the text")
        if config.attention != "xla":
            possible = ops.choose_attention(config.dtype, config.head_width)
            if config.attention == "cudnn" != possible:
                raise ConfigError(
                    "model.attention=cudnn needs model.dtype=bfloat16, an NVIDIA GPU from Ampere on, and heads of a "
                    "width up to 128 that 8 divides; use model.attention=auto"
                )
            config = config.replace(attention=possible)
        self.config, self.vocab_size = config, room

        embedding_key, head_key = jax.random.split(key)
        position_key, blocks_key = (jax.random.fold_in(key, index) for index in (2, 3))
        width, std = config.n_embd, initial_std(config)
        self.token_embedding = Embedding(room, width, std or 1.0, key=embedding_key)
        self.position_embedding = (
            Embedding(config.block_size, width, std or 1.0, key=position_key) if config.position == "learned" else None
        )
        stacked = jax.vmap(partial(Block, config))
        self.blocks = stacked(jax.random.split(blocks_key, config.n_layer)) if config.n_layer else None
        self.norm = make_norm(config) if config.norm != "none" else None
        self.lm_head = None if config.tied else Linear(width, room, bias=config.head_bias, std=std, key=head_key)
        self.lm_head_bias = nnx.Param(jnp.zeros(room)) if config.tied and config.head_bias else None

    @classmethod
    def from_parameters(
        cls, embedding: Float[Array, "V D"], kernel: Float[Array, "D V"], bias: Float[Array, " V"] | None = None
    ) -> "BabyGPT":
        """Return the v1 network with these parameters."""
        vocab_size, width = embedding.shape
        config = BabyGPTConfig(n_embd=width, head_bias=bias is not None)
        model = jax.eval_shape(lambda: cls(config, vocab_size, jax.random.key(0)))
        model.token_embedding.embedding = nnx.Param(embedding)
        model.lm_head.kernel = nnx.Param(kernel)
        model.lm_head.bias = None if bias is None else nnx.Param(bias)
        return model

    @property
    def context_length(self) -> int:
        return self.max_length or 1

    @property
    def low_precision(self) -> bool:
        return self.config.dtype == "bfloat16"

    @property
    def max_length(self) -> int | None:
        return self.config.block_size if self.position_embedding is not None or self.config.n_layer else None

    def decoder(self) -> "BabyGPTDecoder":
        return BabyGPTDecoder(self)

    def flops(self, length: int) -> int:
        """A multiplication and an addition for each weight of a matrix and, in attention, for each number of q k^T and
        of weights times v, masked or not (Chowdhery et al. 2022)."""
        weights = sum(leaf.size for name, leaf in named_arrays(self).items() if name.endswith("kernel"))
        if self.config.tied:
            weights += self.vocab_size * self.config.n_embd
        attention = 2 * self.config.n_layer * length * self.config.attention_width
        return 2 * (weights + attention)

    @property
    def halves_overlap(self) -> bool:
        return not self.config.dropout and 0 < self.config.n_layer <= self.config.unroll

    def embed(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """Return the input of the first block; `positions` default to 0, 1, 2, ..."""
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            table = self.position_embedding.embedding[...]
            x = x + (table[: tokens.shape[1]] if positions is None else table[positions])
        return x.astype(self.config.dtype)

    def head(self, x: Float[Array, "B T D"], tap: Tap = _pass) -> Float[Array, "B T V"]:
        """Return float32 logits from the output of the last block."""
        if self.norm is not None:
            x = self.norm(x)
        x = tap("final", x)
        if self.lm_head is not None:
            logits = self.lm_head(x, "float32")
        else:
            logits = ops.matmul(x, self.token_embedding.embedding[...].T.astype(x.dtype), "float32")
        logits = logits if self.lm_head_bias is None else logits + self.lm_head_bias[...]
        cap = self.config.logit_cap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def __call__(self, tokens: Int[Array, "B T"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        """Return the logits of the token after each. A `key` switches dropout on.

        Raises: ConfigError if there are more tokens than a block has.
        """
        return self._run(tokens, key, None)[0]

    def capture(
        self, tokens: Int[Array, "B T"], edit: Edit | None = None, *, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Return the logits and, by name, what the network computes on the way to them.

        - "embedding", the input of the first block, and "final", that of the head: [B, T, D]
        - "attention_weights": [L, B, H, T, T], "heads", what they mix: [L, B, T, H, K]
        - "hidden", the units of the feed-forward: [L, B, T, F]
        - "attention" and "feed_forward", what a block adds to the residual: [L, B, T, D]
        - "residual", the output of each block: [L, B, T, D]

        `edit(name, layer, value)` returns the value to go on with, of the same shape, for one layer at a time; `layer`
        is traced, and -1 outside the blocks. Under `jax.jit` only what is used is computed and kept.

        Raises: ConfigError if an edit returns another shape.

            def patch(name, layer, value):  # the residual after block 2, as it is in a run on other tokens
                return jnp.where(layer == 2, other["residual"][2], value) if name == "residual" else value
        """
        return self._run(tokens, key, edit or (lambda name, layer, value: value))

    def _run(
        self, tokens: Int[Array, "B T"], key: Key[Array, ""] | None, edit: Edit | None
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        config, length = self.config, tokens.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ConfigError(f"{length} tokens do not fit a block of {config.block_size}")
        outside = {}
        tap = _tap(edit, jnp.int32(-1), outside)
        x = tap("embedding", self.embed(tokens))
        inside = {}
        if self.blocks is not None:
            keys = jax.random.split(key, config.n_layer) if key is not None and config.dropout else None

            def layer(x, block_key_index):
                block, key, index = block_key_index
                values = {}
                x, _ = block(ops.shard_rows(x), key, tap=_tap(edit, index, values))
                return ops.shard_rows(x), values

            layer = jax.checkpoint(layer) if config.remat else layer
            layers = (self.blocks, keys, jnp.arange(config.n_layer))
            x, inside = jax.lax.scan(layer, x, layers, unroll=min(config.unroll, config.n_layer))
        return self.head(x, tap), outside | inside


def _tap(edit: Edit | None, layer: Int[Array, ""], values: dict[str, Array]) -> Tap:
    """Return what edits and keeps an intermediate value, or, without an `edit`, does nothing."""
    if edit is None:
        return _pass

    def tap(name: str, value: Array) -> Array:
        edited = edit(name, layer, value)
        if (shape := getattr(edited, "shape", ())) != value.shape:
            raise ConfigError(f"the edit of {name!r} returned shape {list(shape)}, expected {list(value.shape)}")
        values[name] = edited.astype(value.dtype)
        return values[name]

    return tap
