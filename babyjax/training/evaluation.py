"""Whole-split losses of a model of many tokens: a window of context slides over the text, each token scored once."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from babyjax.data.batches import Split
from babyjax.errors import ConfigError
from babyjax.training.statistics import Nats

# Logits and tokens held at once while evaluating.
CHUNK_LOGITS, CHUNK_TOKENS = 1 << 24, 1 << 14


class ContextEvaluator:
    """`evaluator(model)`: each split's loss, as sums.

    Windows of `block_size` tokens start `stride` apart. The first window scores all its targets, any other its last
    `stride`: so every token but the first of a split is scored once and, past the first window, after at least
    block_size - stride + 1 tokens of context. With `tokens` only so many of each split are scored, in windows spread
    evenly over it. Raises `ConfigError` for a stride that leaves tokens out.
    """

    def __init__(
        self,
        split: Split,
        byte_lengths: Int[np.ndarray, " V"],
        block_size: int,
        stride: int | None = None,
        tokens: int | None = None,
    ):
        self.stride = block_size if stride is None else stride
        if not 1 <= self.stride <= block_size:
            raise ConfigError(f"stride={stride} must lie in [1, {block_size}], the tokens of a block")
        self.split, self.byte_lengths, self.block_size = split, byte_lengths, block_size
        self._limit = None if tokens is None else -(-tokens // self.stride)

    def _starts(self, length: int) -> Int[np.ndarray, " K"]:
        windows = 1 + -(-max(length - 1 - self.block_size, 0) // self.stride)
        kept = windows if self._limit is None else min(windows, self._limit)
        return np.linspace(0, windows - 1, kept).round().astype(np.int64) * self.stride

    def _chunks(
        self, tokens: Int[np.ndarray, " L"], rows: int
    ) -> Iterator[tuple[Int[np.ndarray, "R T"], Int[np.ndarray, "R T"], Bool[np.ndarray, "R T"]]]:
        """Inputs, targets and which of these are scored, `rows` windows at a time."""
        starts, places = self._starts(len(tokens)), np.arange(self.block_size)
        padded = np.append(tokens, np.zeros(self.block_size, tokens.dtype))
        for first in range(0, len(starts), rows):
            start = starts[first : first + rows, None]
            start = np.append(start, np.full((rows - len(start), 1), len(tokens)), axis=0)  # past the end: not scored
            scored = (start + places + 1 < len(tokens)) & ((start == 0) | (places >= self.block_size - self.stride))
            places_of = np.minimum(start + places, len(padded) - 2)
            yield padded[places_of].astype(np.int32), padded[places_of + 1].astype(np.int32), scored

    def __call__(
        self,
        model,
        splits: Sequence[str] = ("train", "val"),
        progress: Callable[[str, float], None] = lambda split, share: None,
    ) -> dict[str, Nats]:
        """The losses of `splits`; `progress(split, share)` is told how far it is."""
        vocab_size = jax.eval_shape(model, jax.ShapeDtypeStruct((1, self.block_size), jnp.int32)).shape[-1]
        rows = max(1, min(CHUNK_LOGITS // (self.block_size * vocab_size), CHUNK_TOKENS // self.block_size))
        losses = {}
        for name in splits:
            tokens = getattr(self.split, name)
            windows = len(self._starts(len(tokens)))
            sums, counts, size = [], [], 0
            for inputs, targets, scored in self._chunks(tokens, min(rows, windows)):
                nats = np.asarray(_token_nats(model, inputs, targets), np.float64)
                sums.append((nats * scored).sum(axis=1))
                counts.append(scored.sum(axis=1))
                size += int(self.byte_lengths[targets[scored]].sum())
                progress(name, min(1.0, sum(map(len, sums)) / windows))
            losses[name] = _add_up(np.concatenate(sums), np.concatenate(counts), size)
        return losses


def _add_up(sums: Float[np.ndarray, " K"], counts: Int[np.ndarray, " K"], size: int) -> Nats:
    """Windows as independent draws: tokens of one text side by side are not (Cochran 1977, on ratio estimates)."""
    nats, tokens, windows = float(sums.sum()), int(counts.sum()), int((counts > 0).sum())
    variance = float(np.square(sums - nats / tokens * counts).sum()) * windows / max(windows - 1, 1)
    return Nats(nats, tokens, size, variance)


@jax.jit
def _token_nats(model, inputs: Int[Array, "R T"], targets: Int[Array, "R T"]) -> Float[Array, "R T"]:
    with jax.default_matmul_precision("highest"):
        return optax.softmax_cross_entropy_with_integer_labels(model(inputs), targets)
