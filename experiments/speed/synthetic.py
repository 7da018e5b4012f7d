"""A long synthetic text, made quickly."""

import numpy as np

STATES, CHAIN_LENGTH, CHANCES = 26, 1000, 65536


def markov_tokens(length: int, seed: int = 0) -> np.ndarray:
    """Draw `length` tokens of a Markov source, uint8: chains of 1,000 tokens, one after the other.

    A next state is one of 65,536 equally likely entries of a row of a table.
    """
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.full(STATES, 0.3), size=STATES)
    quantiles = (np.arange(CHANCES) + 0.5) / CHANCES
    table = np.stack([np.searchsorted(row.cumsum()[:-1], quantiles) for row in rows]).astype(np.uint8).ravel()
    tokens = np.empty((-(-length // CHAIN_LENGTH), CHAIN_LENGTH), np.uint8)
    state = random.integers(0, STATES, len(tokens))
    for step in range(CHAIN_LENGTH):
        state = table[state * CHANCES + random.integers(0, CHANCES, len(tokens), np.uint16)].astype(np.int64)
        tokens[:, step] = state
    return tokens.ravel()[:length]
