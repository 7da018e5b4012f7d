"""Optimisers by configuration."""

import optax

from babyjax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay; each update equals that of `torch.optim.AdamW`."""
    return optax.adamw(
        config.learning_rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
