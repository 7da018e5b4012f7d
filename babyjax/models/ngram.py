"""N-grams of any smoothing in backoff form (Katz 1987), as a trie of sorted arrays: what an ARPA file holds.

The probability of a token is that of the longest n-gram in the trie that ends with it, times the backoff weights of the
longer contexts that were passed over. Interpolated models have this form too: `counts/kneser_ney.py` makes one.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.models.base import Decoder, LanguageModel

MAX_ORDER = 10
MISSING = -1  # in place of a node
CHILDREN = 64  # children of a node that are read at once

Nodes = Int[Array, "*shape"]


class NGram(LanguageModel):
    """A node of the trie is an n-gram. Node 0 is empty, node 1 + i is token i, and longer n-grams follow by length,
    each length sorted by the node of its first n - 1 tokens and then by its last token. So the children of a node,
    which are longer by one token, are `first_child[node]` to `first_child[node + 1] - 1`, sorted by that token.

    `first_child` and `log_backoff` stop before the longest n-grams. `halvings[n - 1]` is how often a binary search
    among the children of an n-gram of n - 1 tokens must halve their number.
    """

    def __init__(
        self,
        vocab_size: int,
        last: Int[Array, " N"],
        log_probability: Float[Array, " N"],
        log_backoff: Float[Array, " C"],
        first_child: Int[Array, " C+1"],
        halvings: Int[Array, " n"],
    ):
        self.vocab_size = vocab_size
        self.last, self.log_probability = nnx.Variable(last), nnx.Variable(log_probability)
        self.log_backoff, self.first_child = nnx.Variable(log_backoff), nnx.Variable(first_child)
        self.halvings = nnx.Variable(halvings)

    @classmethod
    def untrained(cls, vocab_size: int) -> "NGram":
        """Return a model without n-grams: the types of the arrays, whose sizes only counting knows."""
        ids, numbers = jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.float32)
        return cls(vocab_size, ids, numbers, numbers, ids, ids)

    @classmethod
    def from_levels(
        cls,
        vocab_size: int,
        last: list[Int[np.ndarray, " N"]],
        parent: list[Int[np.ndarray, " N"]],
        log_probability: list[Float[np.ndarray, " N"]],
        log_backoff: list[Float[np.ndarray, " N"]],
    ) -> "NGram":
        """Build the trie of n-grams by length, 1 first: all tokens in order, then by sorted (`parent`, `last`).

        `parent[n]` numbers the n-grams one shorter from 0. The longest have no `log_backoff`.
        """
        offsets = np.cumsum([0, 1, *map(len, last)])
        sizes = np.diff(offsets[:-1])
        children = [np.bincount(nodes, minlength=size) for nodes, size in zip(parent, sizes, strict=True)]
        return cls(
            vocab_size,
            jnp.asarray(np.concatenate([[0], *last]), jnp.int32),
            jnp.asarray(np.concatenate([[0.0], *log_probability]), jnp.float32),
            jnp.asarray(np.concatenate([[0.0], *log_backoff]), jnp.float32),
            jnp.asarray(1 + np.cumsum(np.concatenate([[0], *children])), jnp.int32),
            jnp.array([int(count.max(initial=0)).bit_length() for count in children], jnp.int32),
        )

    def levels(self) -> list[slice]:
        """Return where the nodes of 1, 2, ... n tokens are."""
        first = np.asarray(self.first_child[...])
        bounds = [1, 1 + self.vocab_size]
        while len(bounds) <= self.order:
            bounds.append(int(first[bounds[-1]]))
        return [slice(*pair) for pair in pairwise(bounds)]

    @property
    def order(self) -> int:
        """Tokens of the longest n-gram; the most there can be if the model is untrained."""
        return self.halvings.shape[-1] or MAX_ORDER

    @property
    def context_length(self) -> int:
        return self.order - 1

    @property
    def size(self) -> int:
        """The number of n-grams."""
        return max(self.last.shape[-1] - 1, 0)

    def __call__(self, tokens: Int[Array, "B T"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        contexts = jnp.stack(self.match(tokens)[:-1], axis=-1) if self.order > 1 else jnp.zeros((*tokens.shape, 0), int)
        rows = self.log_probabilities(contexts.reshape(-1, self.order - 1))
        return rows.reshape(*tokens.shape, self.vocab_size)

    def nats(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
        found = self.match(tokens)
        value = self.log_probability[...][found[0]]
        for context, node in pairwise(found):
            value = value + self._log_backoff_of(_shifted(context, MISSING))
            value = jnp.where(node == MISSING, value, self.log_probability[...][node])
        return -value[:, 1:]

    def matched(self, tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
        contexts = self.match(tokens)[:-1]
        return sum((node != MISSING for node in contexts), start=jnp.zeros(tokens.shape, jnp.int32))

    def decoder(self) -> "NGramDecoder":
        return NGramDecoder(self)

    def match(self, tokens: Int[Array, "B T"], before: Int[Array, "B n-1"] | None = None) -> list[Int[Array, "B T"]]:
        """Return the nodes of the last 1, 2, ... n tokens up to each position, MISSING where there is none.

        `before` has the nodes of the last 1, 2, ... n - 1 tokens before the first position; default: none.
        """
        found = [1 + tokens]
        for length in range(1, self.order):
            seen = MISSING if before is None else before[:, length - 1, None]
            found.append(self._child(_shifted(found[-1], seen), tokens, self.halvings[...][length]))
        return found

    def log_probabilities(self, contexts: Int[Array, "R n-1"]) -> Float[Array, "R V"]:
        """Return the log-probabilities of every token after contexts, given as their nodes by length."""
        rows = jnp.broadcast_to(self.log_probability[1 : self.vocab_size + 1], (len(contexts), self.vocab_size))
        row = jnp.arange(len(contexts))[:, None]
        for node in contexts.T:
            start, end = self._children(node)

            def add(chunk, rows, start=start, end=end):
                places = start[:, None] + chunk * CHILDREN + jnp.arange(CHILDREN)
                column = jnp.where(places < end[:, None], self.last[...][places], self.vocab_size)
                return rows.at[row, column].set(self.log_probability[...][places], mode="drop")

            rows = rows + self._log_backoff_of(node)[:, None]
            rows = jax.lax.fori_loop(0, -(-(end - start).max() // CHILDREN), add, rows)
        return rows

    def _children(self, node: Nodes) -> tuple[Nodes, Nodes]:
        known, first = node != MISSING, self.first_child[...]
        start, end = (first[jnp.where(known, node + more, 0)] for more in (0, 1))
        return jnp.where(known, start, 0), jnp.where(known, end, 0)

    def _child(self, node: Nodes, token: Nodes, halvings: Int[Array, ""]) -> Nodes:
        last = self.last[...]
        start, end = self._children(node)

        def halve(_, limits):
            low, high = limits
            middle = (low + high) // 2
            below = last[middle] < token
            return jnp.where(below, jnp.minimum(middle + 1, high), low), jnp.where(below, high, middle)

        place, _ = jax.lax.fori_loop(0, halvings, halve, (start, end))
        return jnp.where((place < end) & (last[place] == token), place, MISSING)

    def _log_backoff_of(self, node: Nodes) -> Float[Array, "*shape"]:
        return jnp.where(node == MISSING, 0.0, self.log_backoff[...][node])


def _shifted(nodes: Int[Array, "B T"], first: Any) -> Int[Array, "B T"]:
    """Move every column one to the right."""
    return jnp.concatenate([jnp.broadcast_to(first, (len(nodes), 1)), nodes[:, :-1]], axis=1).astype(jnp.int32)


class NGramDecoder(Decoder):
    """The cache has the nodes of the last 1, 2, ... n - 1 tokens of each row: the matched context."""

    model: NGram

    @property
    def capacity(self) -> int | None:
        return None

    def init_cache(self, batch: int) -> Int[Array, "B n-1"]:
        return jnp.full((batch, self.model.order - 1), MISSING, jnp.int32)

    def extend(
        self, cache: Int[Array, "B n-1"], tokens: Int[Array, "B T"], counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Int[Array, "B n-1"]]:
        found = self.model.match(tokens, cache)[:-1]
        newest = jnp.full(len(tokens), tokens.shape[1]) if counts is None else counts
        rows = jnp.arange(len(tokens))
        cache = jnp.stack([node[rows, newest - 1] for node in found], axis=1) if found else cache
        return self.model.log_probabilities(cache), cache

    def matched(self, cache: Int[Array, "B n-1"]) -> Int[Array, " B"]:
        return (cache != MISSING).sum(axis=1)
