"""The protocol of a language model, which every model of the ladder follows.

Training, evaluation and sampling never ask for the class of a model; adaptive evaluation goes by the config. Growing,
the loss decomposition and the file formats are each for one class and check their argument.

A model is a Flax NNX module used as an immutable pytree: only plain `jax.jit`, `jax.grad` and `jax.vmap` act on it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

# The `knowledge` of an n-gram that has seen no context.
NOTHING_KNOWN = (1.0, 0.0, 0.0)


class LanguageModel(nnx.Module):
    """`logits = model(tokens)`: position t holds the logits of token t + 1, given the tokens up to t."""

    vocab_size: int

    @property
    def context_length(self) -> int:
        """The tokens that can influence a prediction; a model of one previous token has 1."""
        raise NotImplementedError

    @property
    def parts(self) -> Sequence["LanguageModel"]:
        """The models of a mixture; empty for any other model."""
        return ()

    @property
    def gate_size(self) -> int:
        """Number of context features that the weights of a mixture depend on; 0 for any other model."""
        return 0

    @property
    def normalized(self) -> bool:
        """Whether its logits are log-probabilities."""
        return False

    @property
    def low_precision(self) -> bool:
        """Whether it computes in lower precision than float32."""
        return False

    @property
    def max_length(self) -> int | None:
        """The longest text it reads at once, None if there is no limit."""
        return None

    def __call__(self, tokens: Int[Array, "B T"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        """Return float32 logits. A `key` is given in training and ignored by a model without dropout."""
        raise NotImplementedError

    def nats(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
        """Return -log p of every token but the first, given those before it, in nats."""
        return optax.softmax_cross_entropy_with_integer_labels(self(tokens[:, :-1]), tokens[:, 1:])

    def knowledge(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T 3"]:
        """Return three numbers about the longest context that was counted, or zeros for a model that looks nothing up.

        The backoff weight, at most 1, which in an interpolated model is the probability left to shorter contexts; the
        logarithm of how many different tokens have followed; and the length of the context.
        """
        return jnp.zeros((*tokens.shape, 3))

    def decoder(self) -> "Decoder":
        """Return what reads tokens one after the other."""
        return Decoder(self)

    def flops(self, length: int) -> int:
        """Floating-point operations of a forward pass per token of a window of `length`; 0 if it multiplies nothing."""
        return 0

    @property
    def halves_overlap(self) -> bool:
        """Whether two halves of a batch, computed side by side, give the same loss and keep a CPU busier."""
        return False


class Decoder:
    """Reads a batch of texts token by token, with an explicit cache. This one rereads the window of every row."""

    def __init__(self, model: LanguageModel):
        self.model = model

    @property
    def capacity(self) -> int | None:
        """The most tokens a row can hold, None if there is no limit."""
        return self.model.context_length

    def init_cache(self, batch: int) -> Any:
        """Return the cache of `batch` empty rows of up to `capacity` tokens, the first axis of every leaf."""
        return jnp.zeros((batch, self.model.context_length), jnp.int32), jnp.zeros(batch, jnp.int32)

    def extend(
        self, cache: Any, tokens: Int[Array, "B T"], counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Any]:
        """Read the first `counts[b]` tokens of each row, which may be 0; by default all.

        Returns the logits after the last token read, which have no meaning for a row with a count of 0, and the new
        cache. No row may come to hold more than `capacity` tokens, all of `tokens` included.
        """
        window, length = cache
        write = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=0))
        window = write(window, tokens, length)
        length = length + (tokens.shape[1] if counts is None else counts)
        logits = self.model(window)
        return logits[jnp.arange(len(window)), length - 1], (window, length)

    def knowledge(self, cache: Any) -> Float[Array, "B 3"]:
        """Return the model's `knowledge` after the last token of each row."""
        return jnp.zeros((len(jax.tree.leaves(cache)[0]), 3))


class LastTokenDecoder(Decoder):
    """Of a model of one previous token; the cache is that token, and texts of any length fit."""

    @property
    def capacity(self) -> int | None:
        return None

    def init_cache(self, batch: int) -> Int[Array, " B"]:
        return jnp.zeros(batch, jnp.int32)

    def extend(
        self, cache: Int[Array, " B"], tokens: Int[Array, "B T"], counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Int[Array, " B"]]:
        last = tokens[:, -1]
        if counts is not None:
            last = jnp.where(counts > 0, tokens[jnp.arange(len(tokens)), counts - 1], cache)
        return self.model(last[:, None])[:, 0], last
