"""How fast training is, and how much of what the device can do that takes."""

import re
from typing import Any

from babyjax.trees import named_arrays

# Dense bfloat16 flop/s a device is sold with, by what JAX calls it (a core of TPU v2 and v3, a chip of the later ones).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def training_flops(model: Any, length: int) -> int:
    """Floating point operations of a training step for each token of a window of `length`.

    A multiplication and an addition for each weight of a matrix and, in attention, for each number of q k^T and of
    weights times v, no causal half left out; the backward pass costs twice the forward (Chowdhery et al. 2022).
    """
    weights = sum(leaf.size for name, leaf in named_arrays(model).items() if name.endswith("kernel"))
    vocab_size, width = model.token_embedding.embedding.shape
    if model.lm_head is None:
        weights += vocab_size * width
    attention = 2 * model.n_layer * length * width
    return 3 * 2 * (weights + attention)


def peak_flops(kind: str) -> float | None:
    """What a device of a `device_kind` can do at most, in bfloat16 flop/s; None where that is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", kind)), None)
