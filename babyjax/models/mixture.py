"""Linear mixtures of models, in probability."""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.errors import ConfigError
from babyjax.models.base import Decoder, LanguageModel

FEATURES = 10  # of a context, in `features`


def features(knowledge: Any) -> Any:
    """Return 1, the three numbers of `knowledge`, and their squares and products: [..., 3] to [..., 10]."""
    numbers = [knowledge[..., index] for index in range(3)]
    products = [one * other for one, other in combinations_with_replacement(numbers, 2)]
    xp = knowledge.__array_namespace__()
    return xp.stack([xp.ones_like(numbers[0]), *numbers, *products], axis=-1)


def most_known(every: Sequence[Any]) -> Any:
    """Return, of the `knowledge` of several parts, that of the longest context."""
    xp = every[0].__array_namespace__()
    stacked = xp.stack(every)
    longest = xp.argmax(2 * stacked[..., 2] + stacked[..., 0], axis=0)  # what has seen nothing still leaves 1
    return xp.take_along_axis(stacked, longest[None, ..., None], axis=0)[0]


def _known(part: LanguageModel, tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Return tokens that a part can read."""
    return jnp.minimum(tokens, part.vocab_size - 1)


class Mixture(LanguageModel):
    """`p = sum_i w_i p_i`. The weights depend on what an n-gram among the parts knows of the context.

    They are a softmax of `features(knowledge) @ gate` (Jacobs et al. 1991), with the knowledge of the part that has
    seen the longest context. A `gate` of one row uses the first feature only: the same weights everywhere. If the parts
    have room for different numbers of tokens, those that a part does not have are impossible to it, and it reads them
    as its last.

    Raises: ConfigError if the gate does not have one column for each part.
    """

    def __init__(self, parts: Sequence[LanguageModel], gate: Float[Array, "F P"]):
        if not parts or gate.shape[-1] != len(parts):
            raise ConfigError(f"a gate of shape {list(gate.shape)} does not give weights to {len(parts)} models")
        for index, part in enumerate(parts):
            setattr(self, f"part{index}", part)
        self.gate = nnx.Variable(gate)
        self.size = len(parts)
        self.vocab_size = max(part.vocab_size for part in parts)

    @property
    def parts(self) -> Sequence[LanguageModel]:
        return [getattr(self, f"part{index}") for index in range(self.size)]

    @property
    def gate_size(self) -> int:
        return len(self.gate[...])

    @property
    def normalized(self) -> bool:
        return True

    @property
    def low_precision(self) -> bool:
        return any(part.low_precision for part in self.parts)

    @property
    def context_length(self) -> int:
        longest = max(part.context_length for part in self.parts)
        return longest if self.max_length is None else min(longest, self.max_length)

    @property
    def max_length(self) -> int | None:
        return min((part.max_length for part in self.parts if part.max_length is not None), default=None)

    def __call__(self, tokens: Int[Array, "B T"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        return self.mix([part(_known(part, tokens)) for part in self.parts], self.knowledge(tokens))

    def nats(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
        parts = [
            jnp.where(tokens[:, 1:] < part.vocab_size, part.nats(_known(part, tokens)), jnp.inf) for part in self.parts
        ]
        nats = jnp.stack(parts, axis=-1)
        return -jax.nn.logsumexp(self.log_weights(self.knowledge(tokens)[:, :-1]) - nats, axis=-1)

    def knowledge(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T 3"]:
        return most_known([part.knowledge(_known(part, tokens)) for part in self.parts])

    def mix(self, logits: Sequence[Float[Array, "*B _"]], knowledge: Float[Array, "*B 3"]) -> Float[Array, "*B V"]:
        """Return the log-probabilities of the mixture from the logits of the parts."""
        parts = [
            jnp.pad(
                jax.nn.log_softmax(each),
                [(0, 0)] * (each.ndim - 1) + [(0, self.vocab_size - each.shape[-1])],
                constant_values=-jnp.inf,
            )
            for each in logits
        ]
        return jax.nn.logsumexp(self.log_weights(knowledge)[..., None, :] + jnp.stack(parts, axis=-1), axis=-1)

    def log_weights(self, knowledge: Float[Array, "*B 3"]) -> Float[Array, "*B P"]:
        """Return the logarithms of the weights of the parts."""
        gate = self.gate[...]
        return jax.nn.log_softmax(jnp.matmul(features(knowledge)[..., : len(gate)], gate, precision="highest"))

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
            *(
                part.extend(each, _known(part.model, tokens), counts)
                for part, each in zip(self.parts, cache, strict=True)
            ),
            strict=True,
        )
        return self.model.mix(logits, self.knowledge(caches)), caches

    def knowledge(self, cache: tuple[Any, ...]) -> Float[Array, "B 3"]:
        return most_known([part.knowledge(each) for part, each in zip(self.parts, cache, strict=True)])
