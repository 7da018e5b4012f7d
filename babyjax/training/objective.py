"""What training minimises."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key


def sum_nats(
    model, inputs: Int[Array, "B T"], targets: Int[Array, "B T"], dropout_key: Key[Array, ""] | None = None
) -> Float[Array, ""]:
    """Cross-entropy of the targets in nats, summed over a batch."""
    logits = model(inputs) if dropout_key is None else model(inputs, dropout_key=dropout_key)
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets))
