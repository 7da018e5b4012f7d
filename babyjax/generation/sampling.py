"""Sampling: one compiled scan over the new tokens, for a batch of prompts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from babyjax.checks import check_tokens
from babyjax.errors import ConfigError, TokenError


def sample_token(
    key: Key[Array, ""], logits: Float[Array, " V"], temperature: Float[Array, ""] | float, top_k: int | None
) -> Int[Array, ""]:
    """A token drawn from softmax(logits / temperature) among the `top_k` likeliest; the likeliest at temperature 0."""
    tokens = None
    if top_k is not None:
        logits, tokens = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))  # of equals, the first
    drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1.0))
    chosen = jnp.where(temperature > 0, drawn, jnp.argmax(logits))
    return chosen if tokens is None else tokens[chosen]


def generate(
    model,
    prompt: Integer[Array, "B T"] | Integer[np.ndarray, "B T"],
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Array, "B N"]:
    """`max_new_tokens` tokens after each prompt, int32[B, max_new_tokens].

    The model sees the last `model.receptive_field` tokens; a prompt is at least that long. Row b draws from its own
    stream of `key`, so it is the same in a batch of any size. Raises `TokenError` for a prompt too short or outside the
    vocabulary, `ConfigError` for a setting that cannot be.
    """
    if prompt.ndim != 2 or prompt.shape[1] < model.receptive_field:
        raise TokenError(f"prompts are [B, T] with T at least {model.receptive_field}, not {list(prompt.shape)}")
    check_tokens(np.asarray(prompt), jax.eval_shape(model, prompt).shape[-1])
    if max_new_tokens < 0 or not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ConfigError(f"cannot draw with {max_new_tokens=}, {temperature=}, {top_k=}")
    return _generate(model, jnp.asarray(prompt), key, max_new_tokens, temperature, top_k)


@partial(jax.jit, static_argnames=("max_new_tokens", "top_k"))
def _generate(model, prompt, key, max_new_tokens, temperature, top_k):
    field = model.receptive_field
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompt.shape[0]))

    def step(window, index):
        logits = model(window)[:, -1]
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        token = jax.vmap(sample_token, (0, 0, None, None))(step_keys, logits, temperature, top_k)
        return jnp.concatenate([window[:, 1:], token[:, None]], axis=1), token

    _, tokens = jax.lax.scan(step, prompt[:, -field:], jnp.arange(max_new_tokens))
    return tokens.T.astype(jnp.int32)
