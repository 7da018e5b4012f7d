"""Counted n-grams with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, section 4.1).

An n-gram is a row of a sorted table, whose key is (row of its first n - 1 tokens in the table of order n - 1, its last
token). The highest order counts how often an n-gram occurs, lower orders in how many contexts.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

UNSEEN = -1


class Order(NamedTuple):
    """The n-grams of an order: sorted keys, discounted counts, and by context the sums of discounts and counts."""

    keys: Int[np.ndarray, " G"]
    kept: Float[np.ndarray, " G"]
    discounted: Float[np.ndarray, " C"]
    total: Float[np.ndarray, " C"]

    def find(self, keys: Int[np.ndarray, " L"]) -> Int[np.ndarray, " L"]:
        """Return the row of each key, -1 if there is none."""
        rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[rows] == keys, rows, UNSEEN)


class KneserNey:
    """An n-gram model of order n, counted on `tokens`: the probability of a token given the n - 1 before it."""

    def __init__(self, tokens: Int[np.ndarray, " L"], vocab_size: int, order: int):
        self.vocab_size = vocab_size
        self.orders: list[Order] = []
        tokens = tokens.astype(np.int64)
        # grams[k][t] is the row of the k-gram that ends at t; the empty one is shared.
        grams = [np.zeros(len(tokens), np.int64)]
        tables = []
        for length in range(1, order + 1):
            context, shorter = grams[-1][:-1], grams[-1][1:]
            if length == 1:
                context, shorter = grams[0], grams[0]
            keys, first, here, counts = np.unique(
                context * vocab_size + tokens[length - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            tables.append((keys, counts, shorter[first]))
            grams.append(here)
        for length, (keys, counts, _) in enumerate(tables, 1):
            if length < order:
                counts = np.bincount(tables[length][2], minlength=len(keys))
            contexts = len(tables[length - 2][0]) if length > 1 else 1
            self.orders.append(_discounted(keys, counts, keys // vocab_size, contexts))

    def nats(self, tokens: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L-1"]:
        """Return -log p of every token but the first, given the tokens before it that the order sees, in nats."""
        tokens = tokens.astype(np.int64)
        probability = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros(len(tokens), np.int64)  # row of the context of each token, in the order below
        for order in self.orders:
            gram = np.where(context == UNSEEN, UNSEEN, order.find(context * self.vocab_size + tokens))
            total = np.where(context == UNSEEN, 0.0, order.total[context])
            kept = np.where(gram == UNSEEN, 0.0, order.kept[gram])
            mixed = (kept + order.discounted[context] * probability) / np.maximum(total, 1)
            probability = np.where(total > 0, mixed, probability)
            context = np.append(UNSEEN, gram[:-1])
        return -np.log(probability[1:])


def _discounted(keys: np.ndarray, counts: np.ndarray, context: np.ndarray, contexts: int) -> Order:
    """Return the n-grams of an order, with discounts for counts of 1, 2 and 3 or more, estimated from counts of counts.

    The discounts are 0.5 if there is no n-gram of count 1, or none of count 2, or none of count 3.
    """
    ones, twos, threes, fours = (float((counts == times).sum()) for times in (1, 2, 3, 4))
    discounts = np.full(3, 0.5)
    if ones and twos and threes:
        share = ones / (ones + 2 * twos)
        estimates = (1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes)
        discounts = np.clip(estimates, 0.05, [0.95, 1.95, 2.95])
    # An n-gram that occurs only at the start of the text follows no context: its count is 0.
    taken = np.append(0.0, discounts)[np.minimum(counts, 3)]
    return Order(
        keys,
        counts - taken,
        np.bincount(context, taken, minlength=contexts),
        np.bincount(context, counts, minlength=contexts),
    )
