"""The rungs of the ladder for the tests: all of their ideas, at a small size."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from babyjax.config import choices_of, load_config
from babyjax.models import make_model
from babyjax.schema import BabyGPTConfig
from babyjax.trees import map_named

LADDER = [name for name in choices_of("model") if name != "bigram"]
# v12 and the larger gpt2 have no idea that v11 and gpt2 have not.
RUNGS = [name for name in LADDER if not name.startswith(("gpt2-", "babygpt-v12"))]


def preset(name: str, **change) -> BabyGPTConfig:
    """A rung as it is, in float32 and compiled fast, but for what changes."""
    model = load_config([f"model={name}"]).model
    assert isinstance(model, BabyGPTConfig)
    return replace(model, **{"dtype": "float32", "unroll": 1} | change)


def small(name: str, **change) -> BabyGPTConfig:
    """A rung at a size for tests."""
    full = preset(name)
    width = 8 * full.n_head if full.n_layer else 16
    size = {"block_size": 8, "n_embd": width, "n_layer": min(full.n_layer, 3), "vocab_size": None}
    return replace(full, **size | change)


def filled(config: BabyGPTConfig, vocab_size: int, seed: int = 0):
    """A model with every parameter drawn, biases and norms too. By NumPy: unlike a random start it compiles nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: make_model(config, vocab_size, jax.random.key(0)))

    def draw(name, leaf):
        spread = max(leaf.shape[-2], 1) ** -0.5 if name.endswith("kernel") else 0.3
        return jnp.asarray(rng.normal(name.endswith("scale"), spread, leaf.shape), leaf.dtype)

    return map_named(draw, shapes)


@jax.jit
def logits_of(model, tokens):
    return model(tokens)
