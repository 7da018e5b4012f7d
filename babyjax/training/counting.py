"""Training by counting once: the count bigram."""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from babyjax.config import BigramConfig, TrainConfig
from babyjax.counts.pairs import count_windows
from babyjax.models.bigram import Bigram, count_matrix
from babyjax.text import duration
from babyjax.training.devices import require_memory
from babyjax.training.events import Event, State


class CountingTrainer:
    """One step: count every pair of `tokens`, or the pairs of the random windows of `train.steps` batches."""

    total_steps = 1

    def __init__(self, tokens: Int[np.ndarray, " L"], vocab_size: int, model: BigramConfig, train: TrainConfig):
        self._tokens, self._vocab_size, self._model, self._train = tokens, vocab_size, model, train

    def init(self) -> State:
        """Return a bigram without counts."""
        size = self._vocab_size
        require_memory(2 * 4 * size**2, f"a table of {size:,} x {size:,} counts")
        return State(np.int32(0), Bigram(jnp.zeros((size, size), jnp.int32), self._model.smoothing), ())

    def run(self, state: State, pauses: tuple[int, ...] = ()) -> Iterator[Event]:
        """Count, unless `state` is counted already."""
        if state.step:
            return
        yield Event(0, state, np.empty(0), 0.0)
        start = time.perf_counter()
        if self._model.counting == "corpus":
            counts = count_matrix(self._tokens, self._vocab_size)
        else:
            counts = count_windows(
                self._tokens,
                self._vocab_size,
                self._train.seed,
                steps=self._train.steps,
                batch_size=self._train.batch_size,
                block_size=self._model.block_size,
            )
        pairs = int(np.asarray(jax.block_until_ready(counts)).sum(dtype=np.int64))
        seconds = time.perf_counter() - start
        yield Event(
            1,
            State(np.int32(1), Bigram(counts, self._model.smoothing), ()),
            np.full(1, np.nan),
            seconds,
            last=True,
            note=f"{pairs:,} pairs",
            milestone=True,
            summary=(f"time      {duration(seconds)} to count {pairs:,} pairs",),
        )
