"""Training a network and looking at it on the way, the clock stopped."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from babyjax import init_state, make_advance
from babyjax.models import make_model
from babyjax.schema import Config
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import MAX_STEPS_PER_DISPATCH, start_key


class Mark(NamedTuple):
    """A network after `step` steps that took `seconds`, compilation and looking apart."""

    step: int
    seconds: float
    model: Any


def marked(run: Callable[[int], Any], marks: Sequence[int]) -> Iterator[Mark]:
    """`run(steps)` trains so many steps more and returns the network; it is called from mark to mark."""
    done, seconds = 0, 0.0
    for mark in marks:
        start = time.perf_counter()
        model = jax.block_until_ready(run(int(mark) - done))
        seconds += time.perf_counter() - start
        done = int(mark)
        yield Mark(done, seconds, model)


def train(
    config: Config, tokens: Int[Array, " L"], vocab_size: int, marks: Sequence[int], start: Any = None
) -> Iterator[Mark]:
    """Gradient steps as a run of `config` makes them, from `start` or its own random start, to each of `marks`."""
    optimizer, seed = make_optimizer(config.optimizer, config.train.steps), config.train.seed
    if start is None:
        start = jax.jit(lambda: make_model(config.model, vocab_size, start_key(seed)))()
    # The first dispatch gives the buffers of its state away; `start` stays the caller's.
    state = jax.tree.map(jnp.copy, init_state(start, optimizer))
    advance = make_advance(optimizer, seed, config.train.batch_size, config.model.block_size)
    advance = advance.lower(state, tokens, 1).compile()

    def run(steps: int) -> Any:
        nonlocal state
        while steps:
            now = min(steps, MAX_STEPS_PER_DISPATCH)
            state, _ = advance(state, tokens, now)
            steps -= now
        # A copy: the next dispatch gives these buffers away.
        return jax.tree.map(jnp.copy, state.model)

    return marked(run, marks)
