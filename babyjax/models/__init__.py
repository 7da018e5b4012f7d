"""What each rung of the ladder computes: `logits = model(tokens)`, int32[B, T] to float32[B, T, V]."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Key

from babyjax.config import BabyGPTConfig, BigramConfig, MixtureConfig, ModelConfig, NGramConfig
from babyjax.models.babygpt import BabyGPT
from babyjax.models.base import LanguageModel
from babyjax.models.bigram import Bigram
from babyjax.models.mixture import Mixture
from babyjax.models.ngram import NGram


def make_model(
    config: ModelConfig, vocab_size: int, key: Key[Array, ""], parts: Sequence[LanguageModel] = ()
) -> LanguageModel:
    """Return the untrained model of a config: a bigram or n-gram without counts, a network with random parameters, a
    mixture of `parts` without weights.

    Raises: ConfigError if the config has no room for `vocab_size` tokens.
    """
    match config:
        case BigramConfig():
            return Bigram(jnp.zeros((vocab_size, vocab_size), jnp.int32), config.smoothing)
        case NGramConfig():
            return NGram.untrained(vocab_size)
        case MixtureConfig():
            return Mixture(parts, jnp.zeros((0, len(parts))))
        case BabyGPTConfig():
            return BabyGPT(config, vocab_size, key)
    raise TypeError(f"no model for {type(config).__name__}")
