"""Exact losses from counts: for a model that sees only the previous token, the pair counts are the corpus.

The loss summed over a text is sum_ij C_ij loss(i, j): the model is asked once per distinct context, whatever the length
of the text, and nothing is sampled. Sums are float64 on the host.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from babyjax.checks import check_tokens
from babyjax.data.batches import Split, batch_at
from babyjax.errors import CountError, DataError
from babyjax.models.bigram import add_pairs

# Up to here pairs are counted in a dense table, above it in a sparse one.
DENSE_VOCAB = 1024
# Logits held at once while evaluating: rows of contexts times vocabulary.
CHUNK_LOGITS = 1 << 22


class Nats(NamedTuple):
    """A loss as sums: nats over `tokens` predicted tokens that take `bytes` bytes of UTF-8. Add, then divide once.

    `variance` is that of `nats`, were the text drawn anew.
    """

    nats: float
    tokens: int
    bytes: int
    variance: float

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def standard_error(self) -> float:
        """Of `per_token`, in nats."""
        return math.sqrt(self.variance) / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """The unit that survives a change of tokenizer."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        return math.exp(self.per_token) if self.per_token < 700 else math.inf


def count_windows(
    tokens: Integer[Array, " L"] | Integer[np.ndarray, " L"],
    vocab_size: int,
    seed: int,
    *,
    steps: int,
    batch_size: int,
    block_size: int,
) -> Int[Array, "V V"]:
    """Counts of the pairs in the batches of `steps` training steps: the seed's way of counting, by random windows.

    int32[V, V]. In expectation they are proportional to the counts of the text with its ends tapered. Raises
    `TokenError` for an id out of range, `DataError` for a text no longer than a block, `CountError` for more pairs than
    an int32 counts.
    """
    check_tokens(np.asarray(tokens), vocab_size)
    if tokens.shape[0] <= block_size:
        raise DataError(f"a text of {tokens.shape[0]} tokens is too short for a block of {block_size}")
    if steps * batch_size * block_size >= 2**31:
        raise CountError(f"{steps} x {batch_size} x {block_size} pairs are more than an int32 counts")
    return _count_windows(jnp.asarray(tokens), vocab_size, seed, steps, batch_size, block_size)


@partial(jax.jit, static_argnums=(1, 4, 5))
def _count_windows(tokens, vocab_size, seed, steps, batch_size, block_size):
    def count_batch(step, counts):
        return add_pairs(counts, *batch_at(tokens, seed, step, batch_size, block_size))

    return jax.lax.fori_loop(0, steps, count_batch, jnp.zeros((vocab_size, vocab_size), jnp.int32))


@dataclass(frozen=True)
class PairCounts:
    """The distinct pairs (current, following) of a corpus, sorted, and how often each occurs in each split."""

    current: Int[np.ndarray, " P"]
    following: Int[np.ndarray, " P"]
    counts: dict[str, Int[np.ndarray, " P"]]
    vocab_size: int

    @classmethod
    def from_split(cls, split: Split, vocab_size: int) -> "PairCounts":
        """Count both splits once. Raises `TokenError` for an id out of range, `DataError` for a split without pairs."""
        seen = {}
        for name, tokens in split._asdict().items():
            check_tokens(tokens, vocab_size)
            if len(tokens) < 2:
                raise DataError(f"the {name} split has no pair of tokens")
            flat = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
            if vocab_size <= DENSE_VOCAB:
                table = np.bincount(flat, minlength=vocab_size**2)
                seen[name] = np.flatnonzero(table), table[table > 0]
            else:
                seen[name] = np.unique(flat, return_counts=True)
        return cls._from_flat(seen, vocab_size)

    @classmethod
    def from_counts(cls, train: Int[Array, "V V"], val: Int[Array, "V V"]) -> "PairCounts":
        """From count matrices, of `count_chunks` perhaps. Raises `DataError` for one without pairs."""
        seen = {}
        for name, table in (("train", train), ("val", val)):
            flat = np.asarray(table, np.int64).reshape(-1)
            if not flat.any():
                raise DataError(f"the {name} split has no pair of tokens")
            seen[name] = np.flatnonzero(flat), flat[flat > 0]
        return cls._from_flat(seen, len(train))

    @classmethod
    def _from_flat(cls, seen: dict[str, tuple[np.ndarray, np.ndarray]], vocab_size: int) -> "PairCounts":
        every = np.concatenate([flat for flat, _ in seen.values()])
        pairs, _ = np.unique(every, return_counts=True)  # sorts; not asked for counts NumPy hashes, 20 times slower
        counts = {name: np.zeros(len(pairs), np.int64) for name in seen}
        for name, (flat, count) in seen.items():
            counts[name][np.searchsorted(pairs, flat)] = count
        current, following = np.divmod(pairs, vocab_size)
        return cls(current.astype(np.int32), following.astype(np.int32), counts, vocab_size)

    def context_totals(self, split: str) -> Int[np.ndarray, " V"]:
        """n_i: how often token i is followed by another."""
        totals = np.zeros(self.vocab_size, np.int64)
        np.add.at(totals, self.current, self.counts[split])
        return totals

    def entropy(self, split: str) -> float:
        """H = sum_ij C_ij / N log(n_i / C_ij), in nats per token: no previous-token model has a lower loss here."""
        count = self.counts[split]
        seen = count > 0
        total = self.context_totals(split)[self.current[seen]]
        return float(count[seen] @ np.log(total / count[seen]) / count.sum())

    def add_k_loss(self, split: str, smoothing: float = 1.0) -> float:
        """Loss on `split`, nats per token, of the bigram counted on the training split with add-k smoothing."""
        seen = self.counts[split] > 0
        total = self.context_totals("train")[self.current[seen]] + smoothing * self.vocab_size
        count = self.counts[split][seen]
        return float(count @ (np.log(total) - np.log(self.counts["train"][seen] + smoothing)) / count.sum())

    def bigram_floor(self, split: str) -> float:
        """The count bigram's own loss, nats per token, to hold a network's against.

        On the training split it is the entropy: a bound. On another split it is the loss of the add-one bigram counted
        on the training split: a mark to beat, not a bound.
        """
        return self.entropy(split) if split == "train" else self.add_k_loss(split)

    def losses(self, pair_nats: Float[np.ndarray, " P"], byte_lengths: Int[np.ndarray, " V"]) -> dict[str, Nats]:
        """Each split's loss, from the loss of each pair in nats."""
        sums = {}
        for split, count in self.counts.items():
            seen = count > 0  # a pair the split never shows may cost infinity
            count, nats, size = count[seen], pair_nats[seen].astype(np.float64), byte_lengths[self.following[seen]]
            mean = count @ nats / count.sum()
            variance = count @ np.square(nats - mean) if math.isfinite(mean) else math.inf
            sums[split] = Nats(float(count @ nats), int(count.sum()), int(count @ size), float(variance))
        return sums


class ExactEvaluator:
    """Exact losses of a previous-token model on every split: one dispatch, memory bounded by `CHUNK_LOGITS`."""

    def __init__(self, pairs: PairCounts, byte_lengths: Int[np.ndarray, " V"]):
        self.pairs, self.byte_lengths = pairs, byte_lengths
        contexts, context_of_pair = np.unique(pairs.current, return_inverse=True)
        rows = min(len(contexts), max(1, CHUNK_LOGITS // pairs.vocab_size))
        chunks = -(-len(contexts) // rows)
        # Pairs are sorted by context, so the pairs of a chunk of contexts are a slice; all are padded to the longest.
        edges = np.searchsorted(context_of_pair, np.arange(chunks + 1) * rows)
        self._valid = np.arange(np.diff(edges).max()) < np.diff(edges)[:, None]
        self._contexts = np.resize(contexts, (chunks, rows))
        self._row, self._following = (np.zeros(self._valid.shape, np.int32) for _ in range(2))
        self._row[self._valid] = context_of_pair % rows
        self._following[self._valid] = pairs.following

    def pair_nats(self, model) -> Float[np.ndarray, " P"]:
        """-log p(following | current) of every distinct pair, in nats."""
        return np.asarray(_pair_nats(model, self._contexts, self._row, self._following))[self._valid]

    def __call__(self, model) -> dict[str, Nats]:
        return self.pairs.losses(self.pair_nats(model), self.byte_lengths)


@jax.jit
def _pair_nats(
    model, contexts: Int[Array, "K R"], row: Int[Array, "K P"], following: Int[Array, "K P"]
) -> Float[Array, "K P"]:
    def chunk(arguments):
        contexts, row, following = arguments
        with jax.default_matmul_precision("highest"):  # exact on a TPU or GPU too, where the default is not float32
            logits = model(contexts[:, None])[:, 0]
        return (jax.nn.logsumexp(logits, axis=-1)[row] - logits[row, following]).astype(jnp.float32)

    return jax.lax.map(chunk, (contexts, row, following))
