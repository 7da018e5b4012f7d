"""Sampling: one compiled scan over the new tokens, for a batch of prompts."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample_token(
    key: Key[Array, ""], logits: Float[Array, " V"], temperature: Float[Array, ""] | float, top_k: int | None
) -> Int[Array, ""]:
    """A token drawn from softmax(logits / temperature) among the `top_k` likeliest; the likeliest at temperature 0."""
    if top_k is not None:
        smallest_kept = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][-1]
        logits = jnp.where(logits < smallest_kept, -jnp.inf, logits)
    drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1.0))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits))


@partial(jax.jit, static_argnames=("max_new_tokens", "top_k"))
def generate(
    model,
    prompt: Int[Array, "B T"],
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: Float[Array, ""] | float = 1.0,
    top_k: int | None = None,
) -> Int[Array, "B N"]:
    """`max_new_tokens` tokens after each prompt, int32[B, max_new_tokens].

    The model sees the last `model.receptive_field` tokens; a prompt is at least that long. Row b draws from its own
    stream of `key`, so it is the same in a batch of any size.
    """
    field = model.receptive_field
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompt.shape[0]))

    def step(window, index):
        logits = model(window)[:, -1]
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        token = jax.vmap(sample_token, (0, 0, None, None))(step_keys, logits, temperature, top_k)
        return jnp.concatenate([window[:, 1:], token[:, None]], axis=1), token

    _, tokens = jax.lax.scan(step, prompt[:, -field:], jnp.arange(max_new_tokens))
    return tokens.T.astype(jnp.int32)
