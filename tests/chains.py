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


def names_like(seed: int, length: int = 18_000) -> PairCounts:
    """Count names of a random language of 21 consonants and 5 vowels; token 0 ends a name."""
    random, vowels = np.random.default_rng(seed), np.array([1, 5, 9, 15, 21])
    consonants = np.setdiff1d(np.arange(1, 27), vowels)
    rows = np.zeros((27, 27))
    rows[0, 1:] = random.dirichlet(np.full(26, 0.5))
    for letter in range(1, 27):
        vowel = letter in vowels
        rows[letter, vowels] = random.dirichlet(np.full(5, 0.6)) * (0.12 if vowel else 0.75)
        rows[letter, consonants] = random.dirichlet(np.full(21, 0.15)) * (0.55 if vowel else 0.12)
        rows[letter, 0] = 1 - rows[letter].sum()
    tokens = chain(random, rows, length)
    return PairCounts.from_split(Split(tokens, tokens[:1000]), 27)
