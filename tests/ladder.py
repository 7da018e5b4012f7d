"""The rungs of the ladder for the tests: all of their ideas, at a small size."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import recipes
from babyjax.config import BabyGPTConfig
from babyjax.models.babygpt import BabyGPT
from babyjax.trees import map_named

V, BLOCK = 11, 8  # tests of small models of this size on batches of 3 rows share compiled programs
LADDER = [name for name in recipes.MODELS if name not in ("bigram", "ngram", "mixture")]
# These have no idea that another does not have.
TWINS = ("gpt2-", "babygpt-v12", "llama-tiny", "qwen-tiny", "gpt-tiny", "gpt-small")
RUNGS = [name for name in LADDER if not name.startswith(TWINS)]
# Between them these have most ideas.
QUICK_RUNGS = ("babygpt", "babygpt-v10-dropout", "qwen3-0.6b")


def mostly_slow(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Test parameters of which only the `quick` ones are part of the README's test command."""
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]


def preset(name: str, **changes) -> BabyGPTConfig:
    """A rung in float32 with layers that compile as one, and with `changes`."""
    return recipes.presets[name].replace(**{"dtype": "float32", "unroll": 1} | changes)


def small(name: str, **changes) -> BabyGPTConfig:
    """A rung at a size for tests. One or two blocks have every idea; three took longer to compile unrolled."""
    full = preset(name)
    width = 8 * full.n_head if full.n_layer else 16
    size = {"block_size": BLOCK, "n_embd": width, "n_layer": min(full.n_layer, 2), "vocab_size": None}
    if full.head_size is not None:
        size["head_size"] = 12  # not n_embd over n_head
    return full.replace(**size | changes)


def filled(config: BabyGPTConfig, vocab_size: int, seed: int = 0, spread: float = 1.0) -> BabyGPT:
    """A model with every parameter random, biases and norms too. By NumPy, which compiles nothing.

    The default spread makes logits that differ much; a model that is to be trained needs less.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: BabyGPT(config, vocab_size, jax.random.key(0)))

    def draw(name, leaf):
        deviation = max(leaf.shape[-2], 1) ** -0.5 if name.endswith("kernel") else 0.3
        return jnp.asarray(rng.normal(name.endswith("scale"), spread * deviation, leaf.shape), leaf.dtype)

    return map_named(draw, shapes)


@jax.jit
def logits_of(model, tokens):
    return model(tokens)
