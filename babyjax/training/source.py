"""Where the batches of training come from: tokens that the device holds, or windows read from a file ahead of it."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from babyjax.checks import check_tokens
from babyjax.data.batches import read_windows
from babyjax.processes import to_devices
from babyjax.training.devices import replicated, sharded
from babyjax.training.step import MAX_STEPS_PER_DISPATCH

# Tokens read at once: enough steps for a dispatch, and few enough that the first are there at once.
TOKENS_AT_ONCE = 1 << 19


class Served(NamedTuple):
    """What `advance` takes as tokens, and how many steps from here they serve."""

    tokens: Integer[Array, "..."]
    steps: int


class OnDevice:
    """All tokens, on every device."""

    def __init__(self, tokens: Integer[np.ndarray, " L"], mesh: Mesh):
        self._served = Served(to_devices(tokens, replicated(mesh)), MAX_STEPS_PER_DISPATCH)

    def at(self, step: int) -> Served:
        """Return the tokens, the same for every step."""
        return self._served


class FromFile:
    """The windows of some steps at a time. While the device works on them, a thread reads those of the next.

    Each device gets its part of every batch, and a process reads the parts of its own devices. Step s is in the
    s // K-th reading, so that runs that stop and go on read the same. `sizes` are those of a batch and a block.
    """

    def __init__(
        self, tokens: Integer[np.ndarray, " L"], vocab_size: int, seed: int, sizes: tuple[int, int], mesh: Mesh
    ):
        self._tokens, self._vocab_size, self._seed, self._sizes = tokens, vocab_size, seed, sizes
        batch_size, block_size = sizes
        self._steps = max(1, min(TOKENS_AT_ONCE // (batch_size * (block_size + 1)), MAX_STEPS_PER_DISPATCH))
        self._place = sharded(mesh, None, "data")
        self._thread = ThreadPoolExecutor(1, "windows")
        self._ahead: dict[int, Future[Integer[Array, "K B W"]]] = {}

    def at(self, step: int) -> Served:
        """Return the windows of `step` and those read with it. Raises: TokenError if an id is out of range."""
        number, within = divmod(step, self._steps)
        self._ahead = {
            each: self._ahead.get(each) or self._thread.submit(self._read, each) for each in (number, number + 1)
        }
        return Served(self._ahead[number].result(), self._steps - within)

    def _read(self, number: int) -> Integer[Array, "K B W"]:
        batch_size, block_size = self._sizes

        def read(index: Any) -> Integer[np.ndarray, "K b W"]:
            windows = read_windows(
                self._tokens, self._seed, number * self._steps, self._steps, batch_size, block_size, index[1]
            )
            check_tokens(windows, self._vocab_size)
            return windows

        return jax.make_array_from_callback((self._steps, batch_size, block_size + 1), self._place, read)
