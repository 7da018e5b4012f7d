"""N-grams of any smoothing in backoff form (Katz 1987), as a trie of sorted arrays: what an ARPA file holds.

The probability of a token is that of the longest n-gram in the trie that ends with it, times the backoff weights of the
longer contexts that were passed over. Interpolated models have this form too: `counts/kneser_ney.py` makes one.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from babyjax.models.base import NOTHING_KNOWN, Decoder, LanguageModel

MAX_ORDER = 10
MISSING = -1  # in place of a node
CHILDREN = 64
Nodes = Int[Array, "*shape"]


class NGram(LanguageModel):
    """A node of the trie is an n-gram. Node 0 is empty, node 1 + i is token i, and longer n-grams follow by length,
    each length sorted by the node of its first n - 1 tokens and then by its last token. So the children of a node,
    which are longer by one token, are `first_child[node]` to `first_child[node + 1] - 1`, sorted by that token.

    `first_child` and `log_backoff` stop before the longest n-grams. `starts[n - 1]` is the first node of n tokens, and
    `halvings[n - 1]` how often a binary search among the children of an n-gram of n - 1 tokens must halve their number.
    """

    def __init__(
        self,
        vocab_size: int,
        last: Int[Array, " N"],
        log_probability: Float[Array, " N"],
        log_backoff: Float[Array, " C"],
        first_child: Int[Array, " _"],
        starts: Int[Array, " n"],
        halvings: Int[Array, " n"],
    ):
        self.vocab_size = vocab_size
        self.last, self.log_probability = nnx.Variable(last), nnx.Variable(log_probability)
        self.log_backoff, self.first_child = nnx.Variable(log_backoff), nnx.Variable(first_child)
        self.starts, self.halvings = nnx.Variable(starts), nnx.Variable(halvings)

    @classmethod
    def untrained(cls, vocab_size: int) -> "NGram":
        """Return a model without n-grams: the types of the arrays, whose sizes only counting knows."""
        ids, numbers = jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.float32)
        return cls(vocab_size, ids, numbers, numbers, ids, ids, ids)

    @classmethod
    def from_levels(
        cls,
        vocab_size: int,
        last: list[Int[np.ndarray, " _"]],
        parent: list[Int[np.ndarray, " _"]],
        log_probability: list[Float[np.ndarray, " _"]],
        log_backoff: list[Float[np.ndarray, " _"]],
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
            jnp.asarray(offsets[1:-1], jnp.int32),
            jnp.array([int(count.max(initial=0)).bit_length() for count in children], jnp.int32),
        )

    def levels(self) -> list[slice]:
        """Return where the nodes of 1, 2, ... n tokens are."""
        return [slice(*pair) for pair in pairwise([*np.asarray(self.starts[...]).tolist(), len(self.last[...])])]

    @property
    def order(self) -> int:
        """Tokens of the longest n-gram; the most there can be if the model is untrained."""
        return self.halvings.shape[-1] or MAX_ORDER

    @property
    def normalized(self) -> bool:
        return True

    @property
    def context_length(self) -> int:
        return self.order - 1

    @property
    def size(self) -> int:
        """The number of n-grams."""
        return max(self.last.shape[-1] - 1, 0)

    def __call__(self, tokens: Int[Array, "B T"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        contexts = jnp.stack(self.match(tokens)[:-1], axis=-1) if self.order > 1 else jnp.zeros((*tokens.shape, 0), int)
        rows = self.log_probabilities(contexts.reshape(tokens.size, self.order - 1))
        return rows.reshape(*tokens.shape, self.vocab_size)

    def nats(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
        found = self.match(tokens)
        value = self.log_probability[...][found[0]]
        for context, node in pairwise(found):
            value = value + self._log_backoff_of(_shifted(context))
            value = jnp.where(node == MISSING, value, self.log_probability[...][node])
        return -value[:, 1:]

    def knowledge(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T 3"]:
        return self.knowledge_of(jnp.stack([jnp.zeros_like(tokens), *self.match(tokens)[:-1]], axis=-1))

    def knowledge_of(self, contexts: Int[Array, "*B K"]) -> Float[Array, "*B 3"]:
        """Return the `knowledge` after some contexts, given as their nodes by length, the empty one first."""
        start, end = self._children(contexts)
        longest = (contexts.shape[-1] - 1 - jnp.argmax((end > start)[..., ::-1], axis=-1))[..., None]
        left = jnp.exp(jnp.minimum(self._log_backoff_of(jnp.take_along_axis(contexts, longest, axis=-1)), 0.0))
        followers = jnp.take_along_axis(end - start, longest, axis=-1)
        found = jnp.concatenate([left, jnp.log(followers), longest], axis=-1)
        return jnp.where(longest > 0, found, jnp.array(NOTHING_KNOWN))

    def decoder(self) -> "NGramDecoder":
        return NGramDecoder(self)

    def match(self, tokens: Int[Array, "B T"]) -> list[Int[Array, "B T"]]:
        """Return the nodes of the last 1, 2, ... n tokens up to each position, MISSING where there is none."""
        found = [1 + tokens]
        for length in range(1, self.order):
            found.append(self._child(_shifted(found[-1]), tokens, self.halvings[...][length]))
        return found

    def extend(self, contexts: Int[Array, "B K"], token: Int[Array, " B"]) -> Int[Array, "B K"]:
        """Return the nodes of the last 1, 2, ... n - 1 tokens after one more `token`."""
        longer = self._child(contexts[:, :-1], token[:, None], self.halvings[1:-1].max(initial=0))
        return jnp.concatenate([1 + token[:, None], longer], axis=1)[:, : self.order - 1]

    def log_probabilities(self, contexts: Int[Array, "R K"]) -> Float[Array, "R V"]:
        """Return the log-probabilities of every token after contexts, given as their nodes by length."""
        rows, (start, end) = jnp.arange(len(contexts))[:, None], self._children(contexts)
        ends = jnp.cumsum(end - start, axis=1)  # in a list of the children of all contexts of a row, by length
        before = start - ends + (end - start)

        def collect(chunk, longest):
            slot = chunk * CHILDREN + jnp.arange(CHILDREN)
            length = (slot[:, None] >= ends[:, None]).sum(axis=-1)
            node = slot + jnp.take_along_axis(before, jnp.minimum(length, before.shape[1] - 1), axis=1)
            column = jnp.where(length < before.shape[1], self.last[...][node], self.vocab_size)
            return longest.at[rows, column].max(node, mode="drop")

        # A longer n-gram has a larger node.
        longest = jnp.broadcast_to(1 + jnp.arange(self.vocab_size), (len(contexts), self.vocab_size))
        if self.order > 1:
            longest = jax.lax.fori_loop(0, -(-ends[:, -1].max() // CHILDREN), collect, longest)
        passed = longest[:, :, None] < self.starts[1:]  # by context: it is followed by this token in shorter ones only
        return self.log_probability[...][longest] + (passed * self._log_backoff_of(contexts)[:, None]).sum(axis=-1)

    def _children(self, node: Nodes) -> tuple[Nodes, Nodes]:
        known, first = node != MISSING, self.first_child[...]
        start, end = (first[jnp.where(known, node + more, 0)] for more in (0, 1))
        return jnp.where(known, start, 0), jnp.where(known, end, 0)

    def _child(self, node: Nodes, token: Int[Array, "*#shape"], halvings: Int[Array, ""]) -> Nodes:
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


def _shifted(nodes: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Move every column one to the right."""
    return jnp.pad(nodes[:, :-1], ((0, 0), (1, 0)), constant_values=MISSING)


class NGramDecoder(Decoder):
    """The cache has the nodes of the last 1, 2, ... n - 1 tokens of each row: the matched context."""

    model: NGram

    @property
    def capacity(self) -> int | None:
        return None

    def init_cache(self, batch: int) -> Int[Array, "B K"]:
        return jnp.full((batch, self.model.order - 1), MISSING, jnp.int32)

    def extend(
        self, cache: Int[Array, "B K"], tokens: Int[Array, "B T"], counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Int[Array, "B K"]]:
        counts = jnp.full(len(tokens), tokens.shape[1]) if counts is None else counts

        def read(place, cache):
            return jnp.where((place < counts)[:, None], self.model.extend(cache, tokens[:, place]), cache)

        cache = jax.lax.fori_loop(0, tokens.shape[1], read, cache)
        return self.model.log_probabilities(cache), cache

    def knowledge(self, cache: Int[Array, "B K"]) -> Float[Array, "B 3"]:
        return self.model.knowledge_of(jnp.pad(cache, ((0, 0), (1, 0))))
