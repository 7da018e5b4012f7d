"""What training minimises."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def mean_nats(model, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]) -> Float[Array, ""]:
    """Cross-entropy of the targets in nats per token, the mean over a batch."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(inputs), targets))
