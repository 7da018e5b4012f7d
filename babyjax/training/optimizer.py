"""Optimisers by configuration."""

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers, muon

from babyjax.schema import AdamWConfig, LionConfig, MuonConfig, OptimizerConfig, SGDConfig
from babyjax.trees import map_named


def make_schedule(config: OptimizerConfig, steps: int, peak: float) -> optax.Schedule:
    """Step size by step: a straight line up to `peak`, then constant, a cosine or a line down to the final one."""
    after = max(steps - config.warmup_steps, 1)
    match config.schedule:
        case "cosine":
            falling = optax.cosine_decay_schedule(peak, after, config.final_learning_rate / peak if peak else 0.0)
        case "linear":
            falling = optax.linear_schedule(peak, config.final_learning_rate, after)
        case _:
            falling = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return falling
    # The first step is one rung up the line, not a step of size 0.
    rise = config.warmup_steps
    return optax.join_schedules([optax.linear_schedule(peak / rise, peak * (1 + 1 / rise), rise), falling], [rise])


def kernels(model: Any) -> Any:
    """Which parameters are matrices of linear layers: no bias, norm or embedding."""
    return map_named(lambda name, _: name.endswith("kernel"), model)


def _muon_axes(model: Any) -> Any:
    """Which axes of a parameter Muon takes for a matrix: the last two of a block's kernels, stacked by layer."""
    axes = MuonDimensionNumbers(-2, -1)
    return map_named(lambda name, _: axes if name.startswith("blocks/") and name.endswith("kernel") else None, model)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` steps; adamw and sgd update as PyTorch's do.

    Weight decay is times the step size of the moment; it is decoupled, but for sgd, where it is part of the gradient.
    What muon leaves to Adam, all but the matrices of blocks, decays only where all does.
    """
    rate = config.learning_rate
    if config.schedule != "constant" or config.warmup_steps:
        rate = make_schedule(config, steps, config.learning_rate)
    mask = kernels if config.decay == "kernels" else None
    match config:
        case AdamWConfig():
            rule = optax.adamw(
                rate, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay, mask=mask
            )
        case LionConfig():
            rule = optax.lion(rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=mask)
        case MuonConfig():
            rule = muon(
                rate,
                beta=config.momentum,
                weight_decay=config.weight_decay,
                adam_learning_rate=make_schedule(config, steps, config.adam_learning_rate),
                adam_weight_decay=config.weight_decay if mask is None else 0.0,
                muon_weight_dimension_numbers=_muon_axes,
            )
        case SGDConfig():
            rule = optax.chain(
                optax.add_decayed_weights(config.weight_decay, mask), optax.sgd(rate, config.momentum or None)
            )
        case _:
            raise TypeError(f"no optimiser for {type(config).__name__}")
    return rule if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
