"""What each rung of the ladder computes: `logits = model(tokens)`, int32[B, T] to float32[B, T, V]."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.models.bigram import Bigram
from babyjax.schema import BabyGPTConfig, BigramConfig, ModelConfig


def make_model(config: ModelConfig, vocab_size: int, key: Key[Array, ""]) -> Bigram | BabyGPT:
    """The model a config describes, untrained: a bigram without counts, a network at its random start.

    Raises `ConfigError` where the config has no room for `vocab_size` tokens, or its sizes cannot be.
    """
    match config:
        case BigramConfig():
            return Bigram(jnp.zeros((vocab_size, vocab_size), jnp.int32), config.smoothing)
        case BabyGPTConfig():
            ideas = {key: value for key, value in vars(config).items() if key not in ("name", "vocab_size")}
            room = vocab_size if config.vocab_size is None else config.vocab_size
            if room < vocab_size:
                raise ConfigError(f"model.vocab_size={room} has no room for the {vocab_size} tokens of the text")
            return BabyGPT(room, **ideas, key=key)
    raise TypeError(f"no model for {type(config).__name__}")
