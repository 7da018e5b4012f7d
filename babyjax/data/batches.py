"""Splits and batches. The batch of a step is a pure function of (tokens, seed, step), so there is no state to save."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from babyjax.errors import DataError

TRAIN_FRACTION = 0.9
# Losses of neighboring tokens are alike, so standard errors compare segments of this many tokens or more.
SEGMENT_TOKENS, MAX_SEGMENTS = 5000, 200


class Split(NamedTuple):
    """Training and validation tokens; no pair of tokens crosses the boundary."""

    train: Int[np.ndarray, " L"]
    val: Int[np.ndarray, " M"]


def split_tokens(tokens: Int[np.ndarray, " N"], block_size: int = 1) -> Split:
    """Split into the first 90 % for training and the rest for validation.

    Raises: DataError if the training split is not longer than `block_size` or validation has no pair.
    """
    boundary = int(TRAIN_FRACTION * len(tokens))
    split = Split(tokens[:boundary], tokens[boundary:])
    if len(split.train) <= block_size:
        raise DataError(
            f"the corpus has {len(tokens):,} tokens, 90 % of them for training: too short for a block of "
            f"{block_size:,}; use a longer text or a smaller model.block_size"
        )
    if len(split.val) < 2:
        raise DataError(
            f"the corpus has {len(tokens):,} tokens: too short to keep 10 % for validation; use a longer text"
        )
    return split


def segments_of(tokens: int) -> int:
    """Return the number of contiguous segments that the standard error of a loss over `tokens` tokens compares."""
    return max(1, min(tokens // SEGMENT_TOKENS, MAX_SEGMENTS))


def batch_at(
    tokens: Int[Array, " L"], seed: Int[Array, ""] | int, step: Int[Array, ""] | int, batch_size: int, block_size: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Return inputs and targets of training step `step`: `batch_size` windows drawn uniformly.

    A window starts anywhere in [0, L - block_size). Targets are the inputs one token later.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    starts = jax.random.randint(key, (batch_size, 1), 0, tokens.shape[0] - block_size)
    window = tokens[starts + jnp.arange(block_size + 1)]
    return window[:, :-1], window[:, 1:]
