"""What each rung of the ladder computes: `logits = model(tokens)`, int32[B, T] to float32[B, T, V]."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from babyjax.config import BabyGPTConfig, BigramConfig, ModelConfig
from babyjax.models.babygpt import BabyGPT
from babyjax.models.base import LanguageModel
from babyjax.models.bigram import Bigram


def make_model(config: ModelConfig, vocab_size: int, key: Key[Array, ""]) -> LanguageModel:
    """Return the untrained model of a config: a bigram without counts, a network with its random initialization.

    Raises: ConfigError if the config has no room for `vocab_size` tokens.
    """
    match config:
        case BigramConfig():
            return Bigram(jnp.zeros((vocab_size, vocab_size), jnp.int32), config.smoothing)
        case BabyGPTConfig():
            return BabyGPT(config, vocab_size, key)
    raise TypeError(f"no model for {type(config).__name__}")
