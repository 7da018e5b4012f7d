"""The loop around the compiled step: how many steps to dispatch, and when to come up for air."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from babyjax.errors import DivergenceError
from babyjax.training.step import MAX_STEPS_PER_DISPATCH, TrainState

# A dispatch should last about this long: short enough for a live display and a prompt answer to Ctrl-C, and long enough
# that moving the state in and out, 20 ms for gpt-tiny on a CPU, is a small share.
DISPATCH_SECONDS = 0.5


Advance = Callable[[TrainState, Int[Array, " L"], int], tuple[TrainState, Float[Array, " K"]]]


class Dispatch(NamedTuple):
    """What some steps in one go brought: `losses` are those of steps `step - len(losses) + 1` to `step`."""

    state: TrainState
    step: int
    losses: Float[np.ndarray, " K"]
    seconds: float


def dispatches(
    advance: Advance,
    state: TrainState,
    tokens: Int[Array, " L"],
    steps: int,
    *intervals: int,
) -> Iterator[Dispatch]:
    """Train from `state.step` to `steps`, pausing at least at every multiple of each of `intervals`.

    A yielded state is gone, donated, once the next is asked for. Raises `DivergenceError` at a loss that is not finite.
    """
    step, count = int(state.step), 8
    while step < steps:
        edge = min([steps, *(step - step % interval + interval for interval in intervals)])
        count = max(1, min(count, edge - step, MAX_STEPS_PER_DISPATCH))
        start = time.perf_counter()
        state, losses = advance(state, tokens, count)
        losses = np.asarray(jax.block_until_ready(losses))[:count]
        seconds = time.perf_counter() - start
        if not np.isfinite(losses).all():
            bad = int(np.argmin(np.isfinite(losses)))
            raise DivergenceError(
                f"the loss became {losses[bad]} at step {step + bad + 1}; a lower optimizer.learning_rate may help"
            )
        step += count
        yield Dispatch(state, step, losses, seconds)
        count = int(count * min(8.0, DISPATCH_SECONDS / seconds))
