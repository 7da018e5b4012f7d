"""The exact loss of BabyGPT v1 on pair counts and its gradient, in chunks of rows: memory is bounded.

The loss is sum_i w_i logsumexp(W_i) - sum_ij T_ij W_ij. The targets T are as sparse as the counts, so only the
normalizers need every cell of W.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.sparse import csr_array
from scipy.special import entr

from babyjax.counts.factors import Factors
from babyjax.counts.pairs import PairCounts

if jax.__version_info__ < (0, 8):
    from jax.experimental import enable_x64  # pyright: ignore
else:
    from jax import enable_x64

# Cells of W worked on at once: a few arrays of them fit the cache of a CPU.
CHUNK_CELLS = 1 << 20


@dataclass(frozen=True)
class Targets:
    """T_ij = w_i P_ij with add-k smoothing, over the contexts seen. A context that is never seen has no weight.

    `contexts` are the tokens i and `weight` their w_i; `unigram` is the column marginal. A cell is the sum of `base`,
    what smoothing adds to every cell of a row, and a sparse `matrix`.
    """

    contexts: Int[np.ndarray, " S"]
    weight: Float[np.ndarray, " S"]
    unigram: Float[np.ndarray, " V"]
    base: Float[np.ndarray, " S"]
    matrix: csr_array

    @classmethod
    def of(cls, pairs: PairCounts, smoothing: float) -> "Targets":
        """Return the targets of the training split."""
        seen, totals = pairs.counts["train"] > 0, pairs.context_totals("train")
        contexts = np.flatnonzero(totals)
        weight = totals[contexts] / totals.sum()
        scale = weight / (totals[contexts] + smoothing * pairs.vocab_size)
        row, column = np.searchsorted(contexts, pairs.current[seen]), pairs.following[seen]
        entry = scale[row] * pairs.counts["train"][seen]
        unigram = np.bincount(column, entry, pairs.vocab_size) + (smoothing * scale).sum()
        matrix = csr_array((entry, (row, column)), shape=(len(contexts), pairs.vocab_size))
        return cls(contexts, weight, unigram, smoothing * scale, matrix)

    @cached_property
    def dense(self) -> tuple[Float[np.ndarray, "V V"], Float[np.ndarray, " V"]]:
        """The matrix T over the whole vocabulary, and w."""
        vocab_size = len(self.unigram)
        matrix = np.zeros((vocab_size, vocab_size))
        matrix[self.contexts] = self.matrix.toarray() + self.base[:, None]
        return matrix, self.context_weight

    @cached_property
    def context_weight(self) -> Float[np.ndarray, " V"]:
        """w over the whole vocabulary."""
        weight = np.zeros(len(self.unigram))
        weight[self.contexts] = self.weight
        return weight

    @cached_property
    def entropy(self) -> float:
        """sum_i w_i H(P_i) in nats, a lower bound of the loss."""
        entries = np.diff(self.matrix.indptr)
        weight, base = np.repeat(self.weight, entries), np.repeat(self.base, entries)
        unseen = (len(self.unigram) - entries) * entr(self.base / self.weight)
        return float(weight @ entr((base + self.matrix.data) / weight) + self.weight @ unseen)

    def loss_and_gradient(self, factors: Factors, penalty: float, dtype: type = np.float64) -> tuple[float, Factors]:
        """Return the loss plus penalty / 2 (|A|^2 + |B|^2), in nats, and its gradient.

        The softmax is computed in `dtype`, everything else in float64.
        """
        embedding, head, bias = factors
        seen = embedding[self.contexts]
        with enable_x64(dtype is np.float64):
            parts = (seen, head, np.zeros(len(head)) if bias is None else bias, self.weight)
            rows = min(len(seen), max(1, CHUNK_CELLS // len(head)))
            results = _normalizers(*(np.asarray(part, dtype) for part in parts), rows=rows)
            normalizer, of_seen, of_head, of_bias = (np.asarray(result, np.float64) for result in results)
        expected = self.matrix @ head + np.outer(self.base, head.sum(axis=0))  # T B
        loss = self.weight @ normalizer - np.vdot(expected, seen)
        loss += penalty / 2 * factors.squares()
        of_embedding = penalty * embedding
        of_embedding[self.contexts] += of_seen - expected
        of_head = of_head - self.matrix.T @ seen - self.base @ seen + penalty * head
        if bias is None:
            return float(loss), Factors(of_embedding, of_head, None)
        return float(loss - self.unigram @ bias), Factors(of_embedding, of_head, of_bias - self.unigram)


@partial(jax.jit, static_argnames="rows")
def _normalizers(
    embedding: Float[Array, "S D"],
    head: Float[Array, "V D"],
    bias: Float[Array, " V"],
    weight: Float[Array, " S"],
    *,
    rows: int,
) -> tuple[Float[Array, " S"], Float[Array, "S D"], Float[Array, "V D"], Float[Array, " V"]]:
    """Return logsumexp(W_i) of every row, and the gradients of their sum weighted by `weight`."""
    size, width = embedding.shape
    count = -(-size // rows)
    padding = (0, count * rows - size)

    def chunk(sums: tuple[Array, Array], part: tuple[Array, Array]) -> Any:
        embedding, weight = part
        logits = embedding @ head.T + bias
        highest = logits.max(axis=1)
        cells = jnp.exp(logits - highest[:, None])
        total = cells.sum(axis=1)
        share = (weight / total)[:, None]
        sums = sums[0] + cells.T @ (embedding * share), sums[1] + (cells * share).sum(axis=0)
        return sums, (highest + jnp.log(total), share * (cells @ head))

    chunks = (
        jnp.pad(embedding, (padding, (0, 0))).reshape(count, rows, width),
        jnp.pad(weight, padding).reshape(count, rows),
    )
    sums, (normalizer, of_embedding) = jax.lax.scan(chunk, (jnp.zeros_like(head), jnp.zeros_like(bias)), chunks)
    return normalizer.ravel()[:size], of_embedding.reshape(count * rows, width)[:size], *sums
