"""Linear mixtures of models, in probability."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.models.base import Decoder, LanguageModel


class Mixture(LanguageModel):
    """`p = sum_i w_i p_i`. The weights depend on how much an n-gram among the parts knows of what follows.

    `log_weights[c]` are those for a certainty of c, the highest of the parts; higher ones have the last row.
    """

    def __init__(self, parts: Sequence[LanguageModel], log_weights: Float[Array, "C P"]):
        for index, part in enumerate(parts):
            setattr(self, f"part{index}", part)
        self.log_weights = nnx.Variable(log_weights)
        self.size = len(parts)
        self.vocab_size = min(part.vocab_size for part in parts)

    @property
    def parts(self) -> list[LanguageModel]:
        """The models that are mixed."""
        return [getattr(self, f"part{index}") for index in range(self.size)]

    @property
    def context_length(self) -> int:
        longest = max(part.context_length for part in self.parts)
        return longest if self.max_length is None else min(longest, self.max_length)

    @property
    def max_length(self) -> int | None:
        return min((part.max_length for part in self.parts if part.max_length is not None), default=None)

    def __call__(self, tokens: Int[Array, "B T"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        return self.mix([part(tokens) for part in self.parts], self.certainty(tokens))

    def nats(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
        nats = jnp.stack([part.nats(tokens) for part in self.parts], axis=-1)
        return -jax.nn.logsumexp(self._log_weights_at(self.certainty(tokens)[:, :-1]) - nats, axis=-1)

    def certainty(self, tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
        return jnp.stack([part.certainty(tokens) for part in self.parts]).max(axis=0)

    def mix(self, logits: Sequence[Float[Array, "*B V"]], certainty: Int[Array, "*B"]) -> Float[Array, "*B V"]:
        """Return the log-probabilities of the mixture from the logits of the parts."""
        every = jnp.stack([jax.nn.log_softmax(each)[..., : self.vocab_size] for each in logits], axis=-1)
        return jax.nn.logsumexp(self._log_weights_at(certainty)[..., None, :] + every, axis=-1)

    def _log_weights_at(self, certainty: Int[Array, "*B"]) -> Float[Array, "*B P"]:
        table = self.log_weights[...]
        return table[jnp.minimum(certainty, len(table) - 1)]

    def decoder(self) -> "MixtureDecoder":
        return MixtureDecoder(self)

    def flops(self, length: int) -> int:
        return sum(part.flops(length) for part in self.parts)


class MixtureDecoder(Decoder):
    """The cache has one for each part."""

    model: Mixture

    def __init__(self, model: Mixture):
        super().__init__(model)
        self.parts = [part.decoder() for part in model.parts]

    @property
    def capacity(self) -> int | None:
        return min((part.capacity for part in self.parts if part.capacity is not None), default=None)

    def init_cache(self, batch: int) -> tuple[Any, ...]:
        return tuple(part.init_cache(batch) for part in self.parts)

    def extend(
        self, cache: tuple[Any, ...], tokens: Int[Array, "B T"], counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...]]:
        logits, caches = zip(
            *(part.extend(each, tokens, counts) for part, each in zip(self.parts, cache, strict=True)), strict=True
        )
        return self.model.mix(logits, self.certainty(caches)), caches

    def certainty(self, cache: tuple[Any, ...]) -> Int[Array, " B"]:
        return jnp.stack([part.certainty(each) for part, each in zip(self.parts, cache, strict=True)]).max(axis=0)
