"""Optimizers from their options."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, muon

from babyjax.config import AdamWConfig, LionConfig, MuonConfig, OptimizerConfig, SGDConfig
from babyjax.training.step import Rate
from babyjax.trees import map_named


def schedule_shape(config: OptimizerConfig, steps: int, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Return the learning rate at a step as a share of its peak.

    A linear warm-up, whose first step is not zero, then constant, or a cosine or a line down to `final_fraction`.
    """
    after = jnp.clip((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 0.0, 1.0)
    falling = {
        "constant": jnp.ones_like(after),
        "cosine": (1 + jnp.cos(jnp.pi * after)) / 2,
        "linear": 1 - after,
    }[config.schedule]
    shape = config.final_fraction + (1 - config.final_fraction) * falling
    return jnp.minimum(shape, (step + 1) / config.warmup_steps) if config.warmup_steps else shape


def kernels(model: Any) -> Any:
    """Mark the matrices of linear layers: no bias, norm or embedding."""
    return map_named(lambda name, _: name.endswith("kernel"), model)


def block_kernels(model: Any) -> Any:
    """Mark the matrices of linear layers in blocks."""
    return map_named(lambda name, _: name.startswith("blocks/") and name.endswith("kernel"), model)


def _muon_axes(kernels: Any) -> Any:
    """Return the axes of stacked kernels that make a matrix: the last two."""
    return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), kernels)


def make_optimizer(
    config: OptimizerConfig, steps: int, learning_rate: Rate | None = None
) -> optax.GradientTransformation:
    """Return the optimizer of a run of `steps` steps; adamw and sgd update as PyTorch's do.

    `learning_rate` is the peak (default: that of the config) and may be traced. Weight decay is multiplied by the
    learning rate of the step; it is decoupled, except for sgd, where it is part of the gradient. With muon, parameters
    other than the kernels of blocks are updated by Adam and decay only if `decay` is "all".
    """
    peak = config.learning_rate if learning_rate is None else learning_rate

    def scheduled(rate: Rate) -> Any:
        if config.schedule == "constant" and not config.warmup_steps:
            return rate
        return lambda step: rate * schedule_shape(config, steps, step)

    rate, mask = scheduled(peak), kernels if config.decay == "kernels" else None
    match config:
        case AdamWConfig():
            rule = optax.adamw(
                rate, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay, mask=mask
            )
        case LionConfig():
            rule = optax.lion(rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=mask)
        case MuonConfig():
            matrices = muon(
                rate, beta=config.momentum, weight_decay=config.weight_decay, muon_weight_dimension_numbers=_muon_axes
            )
            # muon's own Adam for the rest would have Nesterov momentum.
            decay = config.weight_decay if mask is None else 0.0
            rest = optax.adamw(scheduled(config.adam_learning_rate), weight_decay=decay)
            rule = optax.partition({True: matrices, False: rest}, block_kernels)
        case SGDConfig():
            rule = optax.chain(
                optax.add_decayed_weights(config.weight_decay, mask), optax.sgd(rate, config.momentum or None)
            )
        case _:
            raise TypeError(f"no optimizer for {type(config).__name__}")
    return rule if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
