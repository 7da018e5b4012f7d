"""Texts of small Markov chains, for the tests of what pair counts can do."""

import numpy as np

from babyjax import PairCounts, Split

V = 7


def chain(random: np.random.Generator, rows: np.ndarray, length: int) -> np.ndarray:
    """Draw tokens from a chain with these transition probabilities, starting at 0."""
    tokens = [0]
    for _ in range(length):
        tokens.append(int(random.choice(len(rows), p=rows[tokens[-1]])))
    return np.array(tokens, np.int32)


def random_pairs(seed: int = 0, length: int = 3000, vocab_size: int = V) -> PairCounts:
    """Count a random chain over all tokens but the last, which never occurs."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.full(vocab_size - 1, 0.4), size=vocab_size - 1)
    tokens = chain(random, rows, length)
    return PairCounts.from_split(Split(tokens[: length * 9 // 10], tokens[length * 9 // 10 :]), vocab_size)
