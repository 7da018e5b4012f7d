"""Whole-split losses: exact from pair counts for a model of one previous token, by sliding windows for any other.

Losses travel as sums of float64 on the host and are divided once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from babyjax.checks import check_tokens
from babyjax.counts.pairs import PairCounts
from babyjax.data.batches import Split, segments_of, windows_at
from babyjax.errors import ConfigError
from babyjax.models.base import LanguageModel
from babyjax.processes import to_devices, to_host
from babyjax.progress import Progress, silent

# Logits held at once by the exact evaluation and by the sliding windows.
EXACT_LOGITS, WINDOW_LOGITS = 1 << 22, 1 << 24
# Tokens held at once by the sliding windows. On a CPU a network is up to twice as fast if they fit the cache.
WINDOW_TOKENS, WINDOW_TOKENS_ON_CPU = 1 << 14, 1 << 11
# What a window scores if the model reads texts of any length.
FREE_STRIDE = 512


class Nats(NamedTuple):
    """A loss as sums: `nats` over `tokens` predicted tokens, which are `bytes` bytes of UTF-8.

    `standard_error` is that of `per_token` under a new draw of the text, None if the text is too short to tell. It
    compares contiguous segments of at least 5,000 tokens, since neighboring tokens are not independent.
    """

    nats: float
    tokens: int
    bytes: int
    standard_error: float | None

    @classmethod
    def of_segments(cls, nats: Float[np.ndarray, " K"], tokens: Int[np.ndarray, " K"], size: int) -> "Nats":
        """Add up the segments of a text of `size` bytes. The standard error is Cochran's (1977) for ratios."""
        total, count, segments = float(nats.sum()), int(tokens.sum()), len(nats)
        if segments < 2:
            return cls(total, count, size, None)
        if not math.isfinite(total):
            return cls(total, count, size, math.inf)
        variance = float(np.square(nats - total / count * tokens).sum()) * segments / (segments - 1)
        return cls(total, count, size, math.sqrt(variance) / count)

    @classmethod
    def of_tokens(cls, nats: Float[np.ndarray, " L"], size: int) -> "Nats":
        """Add up the losses of the tokens of a text, in order, of `size` bytes."""
        return cls.of_segments(*_by_segment(nats, np.ones(len(nats), np.int64)), size)

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte, comparable across tokenizers."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.per_token) if self.per_token < 700 else math.inf


def _smallest_vocabulary(model: LanguageModel) -> int:
    return min([model.vocab_size, *map(_smallest_vocabulary, model.parts)])


def _check_vocabulary(model: LanguageModel, vocab_size: int) -> None:
    known = _smallest_vocabulary(model)
    if known < vocab_size:
        raise ConfigError(
            f"a model of {known:,} tokens cannot be evaluated on a text with a vocabulary of "
            f"{vocab_size:,}; use the tokenizer it was trained with"
        )


class ExactEvaluator:
    """Exact losses of a model of one previous token, in one dispatch whose memory `EXACT_LOGITS` bounds.

    The loss summed over a text is sum_ij C_ij loss(i, j): the model is asked once per distinct context, whatever the
    length of the text, and nothing is sampled.
    """

    def __init__(self, pairs: PairCounts, byte_lengths: Int[np.ndarray, " V"]):
        self.pairs, self.byte_lengths = pairs, byte_lengths
        contexts, context_of_pair = np.unique(pairs.current, return_inverse=True)
        rows = min(len(contexts), max(1, EXACT_LOGITS // pairs.vocab_size))
        chunks = -(-len(contexts) // rows)
        # Pairs are sorted by context, so a chunk of contexts is a slice of them. All slices have the longest length.
        edges = np.searchsorted(context_of_pair, np.arange(chunks + 1) * rows)
        self._valid = np.arange(np.diff(edges).max()) < np.diff(edges)[:, None]
        self._contexts = np.resize(contexts, (chunks, rows))
        self._row, self._following = (np.zeros(self._valid.shape, np.int32) for _ in range(2))
        self._row[self._valid] = context_of_pair % rows
        self._following[self._valid] = pairs.following

    def pair_nats(self, model: LanguageModel) -> Float[np.ndarray, " P"]:
        """Return -log p(following | current) of every distinct pair, in nats.

        Raises: ConfigError if the model sees more than one token or has too small a vocabulary.
        """
        _check_vocabulary(model, self.pairs.vocab_size)
        if model.context_length != 1:
            raise ConfigError(
                f"pair counts give the loss of a model of one previous token; this one sees {model.context_length:,}"
            )
        return to_host(_pair_nats(commit_to_device(model), self._contexts, self._row, self._following))[self._valid]

    def __call__(
        self,
        model: LanguageModel,
        splits: Sequence[str] = ("train", "val"),
        progress: Progress = silent,
    ) -> dict[str, Nats]:
        """Return the loss of each of `splits`, at once. Raises: ConfigError as `pair_nats` does."""
        pair_nats, losses = self.pair_nats(model).astype(np.float64), {}
        size = self.byte_lengths[self.pairs.following]
        for split in splits:
            segments = self.pairs.segments[split]  # sparse: a pair that is not in a split may cost infinity
            losses[split] = Nats.of_segments(
                segments @ pair_nats, segments.sum(axis=1), int(self.pairs.counts[split] @ size)
            )
        return losses


@jax.jit
def _pair_nats(
    model, contexts: Int[Array, "K R"], row: Int[Array, "K P"], following: Int[Array, "K P"]
) -> Float[Array, "K P"]:
    def chunk(arguments):
        contexts, row, following = arguments
        with jax.default_matmul_precision("highest"):  # the default of a GPU or TPU is less than float32
            logits = model(contexts[:, None])[:, 0]
        return (jax.nn.logsumexp(logits, axis=-1)[row] - logits[row, following]).astype(jnp.float32)

    return jax.lax.map(chunk, (contexts, row, following))


class ContextEvaluator:
    """Losses by sliding windows of `block_size` tokens, which start `stride` (default: `block_size`) apart.

    The first window scores all its targets, any other its last `stride`. So every token but the first of a split is
    scored once and, past the first window, after at least block_size - stride + 1 tokens of context. If `tokens` is
    given, only about that many of each split are scored, in windows spread evenly over it.

    Raises: ConfigError if `stride` leaves tokens out or `tokens` is not positive.
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
            raise ConfigError(f"stride={stride} must lie in [1, {block_size}], up to model.block_size")
        if tokens is not None and tokens < 1:
            raise ConfigError(f"tokens={tokens} must be at least 1")
        self.split, self.byte_lengths, self.block_size = split, byte_lengths, block_size
        self._limit = None if tokens is None else -(-tokens // self.stride)

    def starts(self, length: int) -> Int[np.ndarray, " K"]:
        """Return where the windows of a text of `length` tokens start."""
        windows = 1 + -(-max(length - 1 - self.block_size, 0) // self.stride)
        kept = windows if self._limit is None else min(windows, self._limit)
        return np.linspace(0, windows - 1, kept).round().astype(np.int64) * self.stride

    def chunks(
        self, tokens: Integer[np.ndarray, " L"], starts: Int[np.ndarray, " K"], rows: int
    ) -> Iterator[tuple[Int[np.ndarray, "R T+1"], Bool[np.ndarray, "R T"]]]:
        """Yield windows and which of their targets, all tokens but the first, are scored, `rows` windows at a time.

        Raises: TokenError if a token id is out of range.
        """
        places = np.arange(self.block_size)
        for first in range(0, len(starts), rows):
            start = starts[first : first + rows, None]
            start = np.append(start, np.full((rows - len(start), 1), len(tokens)), axis=0)  # past the end: not scored
            scored = (start + places + 1 < len(tokens)) & ((start == 0) | (places >= self.block_size - self.stride))
            window = windows_at(tokens, start[:, 0], self.block_size + 1)
            check_tokens(window, len(self.byte_lengths))
            yield window.astype(np.int32), scored

    @classmethod
    def for_model(
        cls,
        model: LanguageModel,
        split: Split,
        byte_lengths: Int[np.ndarray, " V"],
        stride: int | None = None,
        tokens: int | None = None,
    ) -> "ContextEvaluator":
        """Return the evaluator with the model's longest windows.

        If it reads texts of any length, each token is scored with all the context it can use, and `stride` and `tokens`
        mean nothing.
        """
        if model.max_length is not None:
            return cls(split, byte_lengths, model.max_length, stride, tokens)
        return cls(split, byte_lengths, max(model.context_length, 1) + FREE_STRIDE - 1, FREE_STRIDE)

    def _score(
        self, model: LanguageModel, name: str, progress: Progress, score: Callable[..., Any]
    ) -> Iterator[tuple[Shaped[np.ndarray, "R T *any"], Int[np.ndarray, "R T"], Bool[np.ndarray, "R T"]]]:
        """Scores of the targets of windows, the targets and which of them are scored, some windows at a time.

        If the model is on several devices, each scores its share of the windows.
        """
        _check_vocabulary(model, len(self.byte_lengths))
        where = _window_sharding(model)
        devices = where.mesh.size if where else 1
        network_on_cpu = jax.default_backend() == "cpu" and model.max_length is not None
        at_once = WINDOW_TOKENS_ON_CPU if network_on_cpu else WINDOW_TOKENS
        rows = max(1, min(WINDOW_LOGITS // model.vocab_size, at_once) // self.block_size)
        rows = -(-rows // devices) * devices  # even for fewer windows, so one program serves every text
        model = commit_to_device(model)
        tokens = getattr(self.split, name)
        starts = self.starts(len(tokens))
        for index, (window, scored) in enumerate(self.chunks(tokens, starts, rows)):
            given = to_devices(window, where) if where else window
            yield to_host(score(model, given)), window[:, 1:], scored
            progress(name, min(1.0, (index + 1) * rows / len(starts)))

    def __call__(
        self,
        model: LanguageModel,
        splits: Sequence[str] = ("train", "val"),
        progress: Progress = silent,
    ) -> dict[str, Nats]:
        """Return the loss of each of `splits`; calls `progress(split, fraction)` on the way.

        Raises: ConfigError if the model's vocabulary is too small, TokenError if a token id is out of range.
        """
        losses = {}
        for name in splits:
            sums, counts, size = [], [], 0
            for nats, targets, scored in self._score(model, name, progress, _token_nats):
                sums.append(np.where(scored, nats, 0).astype(np.float64).sum(axis=1))
                counts.append(scored.sum(axis=1))
                size += int(self.byte_lengths[targets[scored]].sum())
            losses[name] = Nats.of_segments(*_by_segment(np.concatenate(sums), np.concatenate(counts)), size)
        return losses

    def token_nats(
        self,
        model: LanguageModel,
        name: str,
        progress: Progress = silent,
    ) -> Float[np.ndarray, " T"]:
        """Return -log p of every token of a split but the first, in nats. Raises: as a call does."""
        assert self._limit is None, "a sample of the windows is not every token"
        scores = self._score(model, name, progress, _token_nats)
        return np.concatenate([nats[scored] for nats, _, scored in scores]).astype(np.float64)

    def token_knowledge(self, model: LanguageModel, name: str) -> Float[np.ndarray, "T 3"]:
        """Return the model's `knowledge` before every token of a split but the first."""
        scores = self._score(model, name, silent, _token_knowledge)
        return np.concatenate([knowledge[scored] for knowledge, _, scored in scores]).astype(np.float64)


def commit_to_device(model: LanguageModel) -> LanguageModel:
    """Commit a model to its device, as training does, so that a trained and a loaded model share one program."""
    leaf = jax.tree.leaves(model)[0]
    devices = leaf.devices() if isinstance(leaf, jax.Array) else jax.local_devices()[:1]
    return jax.device_put(model, *devices) if len(devices) == 1 else model


def _window_sharding(model: LanguageModel) -> NamedSharding | None:
    """Return where windows belong if the model is on several devices, each of which has rows; None if on one."""
    leaf = jax.tree.leaves(model)[0]
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding) or leaf.sharding.mesh.size == 1:
        return None
    return NamedSharding(leaf.sharding.mesh, PartitionSpec(leaf.sharding.mesh.axis_names))


def _by_segment(
    nats: Float[np.ndarray, " K"], tokens: Int[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Add up the sums of consecutive windows to those of segments of about equal size."""
    nats, tokens = nats[tokens > 0], tokens[tokens > 0]
    segment = (np.cumsum(tokens) - tokens) * segments_of(int(tokens.sum())) // tokens.sum()
    first = np.flatnonzero(np.diff(segment, prepend=-1))
    return np.add.reduceat(nats, first), np.add.reduceat(tokens, first)


@jax.jit
def _token_nats(model, tokens: Int[Array, "R T"]) -> Float[Array, "R T-1"]:
    with jax.default_matmul_precision("highest"):
        return model.nats(tokens)


@jax.jit
def _token_knowledge(model, tokens: Int[Array, "R T"]) -> Float[Array, "R T-1 3"]:
    return model.knowledge(tokens)[:, :-1]
