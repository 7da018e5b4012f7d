"""What each rung of the ladder computes: `logits = model(tokens)`, int32[B, T] to float32[B, T, V]."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Key

from babyjax.config import BabyGPTConfig, BigramConfig, Config, MixtureConfig, ModelConfig, NGramConfig
from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.models.base import LanguageModel
from babyjax.models.bigram import Bigram
from babyjax.models.mixture import Mixture
from babyjax.models.ngram import NGram
from babyjax.options import load_config
from babyjax.recipes import presets


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


def config_of_model(model: LanguageModel, vocab_size: int) -> Config:
    """Return the config of a run of this model, with the recipe of the closest preset. Raises: ConfigError."""
    match model:
        case BabyGPT():
            room = None if model.vocab_size == vocab_size else model.vocab_size
            config = model.config.replace(attention="auto", vocab_size=room)
        case Bigram():
            config = BigramConfig(smoothing=model.smoothing)
        case NGram():
            config = NGramConfig(order=model.order)
        case _:
            raise ConfigError(f"a {type(model).__name__} cannot be saved as a run")
    values = config.model_dump()

    def distance(name: str) -> int:
        return sum(value != values[key] for key, value in presets[name].model_dump().items())

    name = min((name for name in presets if type(presets[name]) is type(config)), key=distance)
    return load_config([f"model={name}"]).replace(model=config)
