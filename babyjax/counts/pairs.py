"""Pair counts: all that a model of one previous token can know of a corpus."""

import io
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer
from scipy.sparse import csr_array

from babyjax.checks import check_tokens
from babyjax.data.batches import CHUNK, Split, batch_at, chunks_of, segments_of
from babyjax.data.corpus import Corpus
from babyjax.data.prepared import PreparedCorpus
from babyjax.errors import CountError, DataError
from babyjax.files import replace_file
from babyjax.models.bigram import add_pairs

# Up to this vocabulary a table of all pairs is cheaper than sorting those that occur.
DENSE_VOCAB = 1024
# Counts kept of all segments together; a split with more has fewer segments.
MAX_ENTRIES, LEAST_SEGMENTS = 1 << 25, 10


@dataclass(frozen=True)
class PairCounts:
    """The distinct pairs (current, following) of a corpus, sorted, and how often each occurs in each split.

    `segments` has a row of counts for each contiguous segment of a split, for standard errors.
    """

    current: Int[np.ndarray, " P"]
    following: Int[np.ndarray, " P"]
    segments: dict[str, csr_array]
    vocab_size: int

    @classmethod
    def from_split(cls, split: Split, vocab_size: int) -> "PairCounts":
        """Count both splits once. About a million tokens are in memory at a time, and the pairs that occur.

        Raises: TokenError if an id is out of range, DataError if a split has no pair.
        """
        counted = {name: _count_segments(tokens, vocab_size) for name, tokens in split._asdict().items()}
        return cls._from_counted(counted, vocab_size)

    @classmethod
    def of_corpus(cls, corpus: Corpus | PreparedCorpus, split: Split, vocab_size: int) -> "PairCounts":
        """Count both splits of a corpus, as `from_split` does. The folder of a prepared corpus keeps the counts."""
        if not isinstance(corpus, PreparedCorpus):
            return cls.from_split(split, vocab_size)
        path, source = corpus.folder / f"pairs{corpus.part}.npz", corpus.description.tokens_sha256
        with suppress(OSError, ValueError):
            return cls.load(path, source)
        pairs = cls.from_split(split, vocab_size)
        with suppress(OSError):  # what is kept is a convenience
            pairs.save(path, source)
        return pairs

    def save(self, path: Path, source: str) -> None:
        """Write the counts, and what they are counts of, to a file for `load`. Raises: OSError."""
        content = io.BytesIO()
        parts = {
            f"{name}_{part}": getattr(matrix, part)
            for name, matrix in self.segments.items()
            for part in ("data", "indices", "indptr")
        }
        about = {"vocab_size": np.array(self.vocab_size), "source": np.array(source)}
        np.savez(content, current=self.current, following=self.following, **about, **parts)
        replace_file(path, content.getbuffer())

    @classmethod
    def load(cls, path: Path, source: str) -> "PairCounts":
        """Read what `save` wrote. Raises: OSError, or ValueError if it is damaged or of another source."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if str(arrays["source"]) != source:
                    raise ValueError(f"{path} has the counts of another text")
                current, following, vocab_size = (arrays[name] for name in ("current", "following", "vocab_size"))
                segments = {
                    name: csr_array(
                        tuple(arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr")),
                        shape=(len(arrays[f"{name}_indptr"]) - 1, len(current)),
                    )
                    for name in Split._fields
                }
        except (KeyError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} has no pair counts") from error
        return cls(current, following, segments, int(vocab_size))

    @classmethod
    def from_counts(cls, train: Int[Array, "V V"], val: Int[Array, "V V"]) -> "PairCounts":
        """Convert count matrices, such as those of `count_chunks`. Raises: DataError if one has no pair."""
        tables = {name: np.asarray(table, np.int64).ravel() for name, table in (("train", train), ("val", val))}
        return cls._from_counted({name: [(np.flatnonzero(t), t[t > 0])] for name, t in tables.items()}, len(train))

    @classmethod
    def _from_counted(cls, counted: dict[str, list[tuple[np.ndarray, np.ndarray]]], vocab_size: int) -> "PairCounts":
        for name, segments in counted.items():
            if not len(segments[0][0]):
                raise DataError(f"the {name} split has no pair of tokens; use a longer text")
        every = np.concatenate([flat for segments in counted.values() for flat, _ in segments])
        if vocab_size <= DENSE_VOCAB:
            occurs = np.zeros(vocab_size**2, bool)
            occurs[every] = True
            pairs, places = np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[every]
        else:
            pairs, places = np.unique(every, return_inverse=True)
        matrices = {}
        for name, segments in counted.items():
            columns, places = np.split(places, [sum(len(flat) for flat, _ in segments)])
            ends = np.cumsum([0, *(len(flat) for flat, _ in segments)])
            count = np.concatenate([count for _, count in segments])
            matrices[name] = csr_array((count, columns, ends), shape=(len(segments), len(pairs)))
        current, following = np.divmod(pairs, vocab_size)
        return cls(current.astype(np.int32), following.astype(np.int32), matrices, vocab_size)

    @cached_property
    def counts(self) -> dict[str, Int[np.ndarray, " P"]]:
        """How often each pair occurs in each split."""
        return {name: np.asarray(matrix.sum(axis=0)) for name, matrix in self.segments.items()}

    def context_totals(self, split: str) -> Int[np.ndarray, " V"]:
        """Return n_i: how often token i is followed by another."""
        return np.bincount(self.current, self.counts[split], self.vocab_size).astype(np.int64)

    def entropy(self, split: str) -> float:
        """Return H = sum_ij C_ij / N log(n_i / C_ij): no model of one previous token has a lower loss on `split`."""
        count = self.counts[split]
        seen = count > 0
        total = self.context_totals(split)[self.current[seen]]
        return float(count[seen] @ np.log(total / count[seen]) / count.sum())

    def add_k_loss(self, split: str, smoothing: float = 1.0) -> float:
        """Return the loss on `split`, nats per token, of the bigram counted on train with add-k smoothing."""
        seen = self.counts[split] > 0
        total = self.context_totals("train")[self.current[seen]] + smoothing * self.vocab_size
        count = self.counts[split][seen]
        return float(count @ (np.log(total) - np.log(self.counts["train"][seen] + smoothing)) / count.sum())

    def baseline(self, split: str) -> float:
        """Return the count bigram's loss on `split`, in nats per token, to compare a network with.

        On train it is the entropy, a lower bound. On any other split it is the loss of the add-one bigram counted on
        train, which is no bound.
        """
        return self.entropy(split) if split == "train" else self.add_k_loss(split)


Counted = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]  # distinct pairs as x * V + y, sorted; how often each


def _count_segments(tokens: Integer[np.ndarray, " L"], vocab_size: int) -> list[Counted]:
    """Count the pairs of each contiguous segment of a text."""
    pairs = max(len(tokens) - 1, 0)
    number = segments_of(pairs)
    if min(pairs, number * vocab_size**2) > MAX_ENTRIES:  # there may be as many
        distinct = len(_count(tokens[: pairs // number], vocab_size)[0])
        number = min(number, max(LEAST_SEGMENTS, MAX_ENTRIES // distinct))
    length, longer = divmod(pairs, number)  # the first are longer by one
    bounds = [length * index + min(index, longer) for index in range(number + 1)]
    return [_count(tokens[start : end + 1], vocab_size) for start, end in pairwise(bounds)]


def _count(tokens: Integer[np.ndarray, " L"], vocab_size: int) -> Counted:
    """Count the pairs of a text."""
    cells, found = vocab_size**2, []
    table = np.zeros(cells, np.int64) if vocab_size <= DENSE_VOCAB and cells <= 4 * len(tokens) else None
    for chunk in chunks_of(tokens, overlap=1):
        check_tokens(chunk, vocab_size)
        flat = chunk[:-1].astype(np.int64)
        flat *= vocab_size
        flat += chunk[1:]
        if table is not None:
            table += np.bincount(flat, minlength=cells)
            continue
        found.append(np.unique(flat, return_counts=True))
        if sum(len(distinct) for distinct, _ in found[1:]) > max(CHUNK, len(found[0][0])):
            found = [_added(found)]
    return (np.flatnonzero(table), table[table > 0]) if table is not None else _added(found)


def _added(found: list[Counted]) -> Counted:
    """Add up the counts of the parts of a text."""
    if len(found) == 1:
        return found[0]
    nothing = np.empty(0, np.int64)
    every, counts = (np.concatenate(each) for each in zip((nothing, nothing), *found, strict=True))
    distinct, places = np.unique(every, return_inverse=True)
    return distinct, np.bincount(places, counts, len(distinct)).astype(np.int64)


def count_windows(
    tokens: Integer[Array, " L"] | Integer[np.ndarray, " L"],
    vocab_size: int,
    seed: int,
    *,
    steps: int,
    batch_size: int,
    block_size: int,
) -> Int[Array, "V V"]:
    """Count the pairs in the random windows of `steps` training batches. Returns int32[V, V].

    In expectation the counts are proportional to those of the text with its ends tapered.

    Raises: TokenError if an id is out of range, DataError if the text is no longer than a block, CountError if there
    are more pairs than an int32 can count.
    """
    check_tokens(np.asarray(tokens), vocab_size)
    if tokens.shape[0] <= block_size:
        raise DataError(f"a text of {tokens.shape[0]} tokens is too short for a block of {block_size}")
    if steps * batch_size * block_size >= 2**31:
        raise CountError(f"{steps} x {batch_size} x {block_size} pairs are more than an int32 counts")
    if tokens.shape[0] >= 2**31:
        raise CountError(f"{tokens.shape[0]:,} tokens are more than windows are drawn from; count every pair instead")
    return _count_windows(jnp.asarray(tokens), vocab_size, seed, steps, batch_size, block_size)


@partial(jax.jit, static_argnums=(1, 4, 5))
def _count_windows(tokens, vocab_size, seed, steps, batch_size, block_size):
    def count_batch(step, counts):
        return add_pairs(counts, *batch_at(tokens, seed, step, batch_size, block_size))

    return jax.lax.fori_loop(0, steps, count_batch, jnp.zeros((vocab_size, vocab_size), jnp.int32))
