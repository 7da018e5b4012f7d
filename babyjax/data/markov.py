"""Random Markov sources, whose entropy is known exactly."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from babyjax.errors import DataError

MOST_CONTEXTS = 1 << 15
ENTRIES = 256  # of a row of the table
CONCENTRATION = 0.3  # of the Dirichlet distribution of a row, per state


@dataclass(frozen=True)
class MarkovSource:
    """A source whose next state depends on the last `order` states: a uniformly random entry of its context's row.

    All transition probabilities are multiples of 1/256. A context is the number whose digits in base `states` are the
    last states, the newest last; the source starts in context 0.
    """

    states: int
    order: int
    table: Int[np.ndarray, "C 256"]

    @classmethod
    def random(cls, rng: np.random.Generator, states: int, order: int) -> "MarkovSource":
        """Draw a source whose rows are Dirichlet distributed around the row of the context without its oldest state.

        So every state of the context carries information. Raises: DataError if there would be too many contexts.
        """
        if (contexts := states**order) > MOST_CONTEXTS:
            raise DataError(
                f"{states:,} states of order {order} have {contexts:,} contexts, more than {MOST_CONTEXTS:,}; use fewer"
            )
        weights = rng.dirichlet(np.full(states, CONCENTRATION), size=states)
        for level in range(1, order + 1):
            if level > 1:
                weights = rng.standard_gamma(states * CONCENTRATION * np.tile(weights, (states, 1)))
                weights /= weights.sum(axis=1, keepdims=True)
            if order > 1:  # contexts that lead only to themselves would be likely
                weights = 0.9 * weights + 0.1 / states
        return cls(states, order, np.stack([np.sort(rng.choice(states, size=ENTRIES, p=row)) for row in weights]))

    def draw(self, rng: np.random.Generator, length: int) -> Int[np.ndarray, " L"]:
        """Draw a path of states."""
        table, context, contexts = self.table.tolist(), 0, len(self.table)
        path = np.empty(length, np.int64)
        for position, byte in enumerate(rng.bytes(length)):
            path[position] = state = table[context][byte]
            context = (context * self.states + state) % contexts
        return path

    @property
    def probabilities(self) -> Float[np.ndarray, "C S"]:
        """The probability of each next state in each context."""
        return np.stack([np.bincount(row, minlength=self.states) for row in self.table]) / ENTRIES

    def nats(self, path: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
        """Return -log p of each state of a path from the start, in nats, infinite if it cannot follow."""
        context = np.zeros(len(path), np.int64)
        for distance in range(1, self.order + 1):
            context[distance:] += path[:-distance] * self.states ** (distance - 1)
        with np.errstate(divide="ignore"):
            return -np.log(self.probabilities[context, path])

    @property
    def entropy_rate(self) -> float:
        """H = sum_i pi_i H(P_i) in nats per state, pi the stationary distribution of contexts."""
        contexts, transition = len(self.table), self.probabilities
        # From the context that the path starts in. Staying half of the time changes no limit and leaves none periodic.
        stationary, change = np.eye(1, contexts)[0], 1.0
        while change > 1e-13:
            moved = (stationary[:, None] * transition).reshape(self.states, contexts).sum(axis=0)
            change = np.abs(moved - stationary).sum()
            stationary = (stationary + moved) / 2
        surprise = -np.log(transition, where=transition > 0, out=np.zeros_like(transition))
        return float(stationary @ (transition * surprise).sum(axis=1))
