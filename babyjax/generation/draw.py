"""Sampling one token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

GROUP = 64  # probabilities summed at once


def sample_token(
    key: Key[Array, ""],
    logits: Float[Array, " V"],
    temperature: Float[Array, ""] | float,
    top_k: int | None = None,
    top_p: Float[Array, ""] | float | None = None,
    min_p: Float[Array, ""] | float | None = None,
) -> Int[Array, ""]:
    """Sample a token from softmax(logits / temperature); return the most likely one at temperature 0.

    The draw is restricted to the `top_k` most likely tokens; of these to the smallest set with probability `top_p`
    (nucleus sampling, Holtzman et al. 2020); of these to tokens with at least `min_p` times the largest probability
    (Nguyen et al. 2024).
    """
    logits = (logits - logits.max()) / jnp.where(temperature > 0, temperature, 1.0)
    tokens = None
    if top_k is not None or top_p is not None:
        logits, tokens = jax.lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))  # ties: lowest index
    if top_p is not None:
        probabilities = jax.nn.softmax(logits)
        before = jnp.cumsum(probabilities) - probabilities
        logits = jnp.where(before < jnp.maximum(top_p, jnp.finfo(jnp.float32).tiny), logits, -jnp.inf)
    if min_p is not None:
        logits = jnp.where(logits >= logits.max() + jnp.log(min_p), logits, -jnp.inf)
    index = jnp.where(temperature > 0, _draw_index(key, logits), jnp.argmax(logits))
    return (index if tokens is None else tokens[index]).astype(jnp.int32)


def _draw_index(key: Key[Array, ""], logits: Float[Array, " V"]) -> Int[Array, ""]:
    """Draw an index from softmax(logits), never one of probability 0.

    One random number per draw, not one per token, and sums over groups first: on a CPU 20 times faster than
    `jax.random.categorical` at V = 6,000.
    """
    groups = -(-logits.shape[-1] // GROUP)
    mass = jnp.exp(logits - logits.max())
    mass = jnp.pad(mass, (0, GROUP * groups - logits.shape[-1])).reshape(groups, GROUP)
    cumulative = jnp.cumsum(mass.sum(axis=1))
    target = jax.random.uniform(key) * cumulative[-1]
    group = _first_above(target, mass.sum(axis=1), cumulative)
    rest = target - jnp.where(group > 0, cumulative[group - 1], 0.0)
    index = group * GROUP + _first_above(rest, mass[group], jnp.cumsum(mass[group]))
    return jnp.minimum(index, logits.shape[-1] - 1)  # if logits are NaN, the last token


def _first_above(target: Float[Array, ""], mass: Float[Array, " N"], cumulative: Float[Array, " N"]) -> Int[Array, ""]:
    """Return the first index of positive mass whose cumulative mass exceeds `target`, lowered until there is one.

    The mass is checked because the float32 `cumsum` of XLA sums in a tree: it can rise or fall where the mass is 0.
    """
    total = jnp.where(mass > 0, cumulative, 0)
    above = total > jnp.minimum(target, jnp.nextafter(total.max(), 0.0))
    return jnp.where(above, jnp.arange(len(mass)), len(mass)).min()  # on a CPU 7 times faster than argmax, batched
