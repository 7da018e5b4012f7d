"""Training by gradient steps on random windows: any network."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled, Wrapped
from jaxtyping import Array, Float, Int, Key

from babyjax.config import OptimizerConfig, TrainConfig
from babyjax.errors import DivergenceError
from babyjax.models.base import LanguageModel
from babyjax.text import duration, short
from babyjax.training.devices import (
    bytes_of,
    data_mesh,
    device_names,
    peak_flops,
    program_memory,
    replicated,
    require_memory,
)
from babyjax.training.events import Event, State
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import (
    MAX_STEPS_PER_DISPATCH,
    Hyper,
    init_key,
    init_state,
    make_advance,
    sum_nats,
    sum_nats_in_halves,
)

# A dispatch takes about this long: short enough for a live display and a prompt answer to Ctrl-C, and long enough that
# moving the state in and out, 20 ms for gpt-tiny on a CPU, is a small share.
DISPATCH_SECONDS = 0.5
# Flop per step from which two halves of a batch side by side pay on a CPU; smaller steps are bound by the number of
# operations.
HALVED_FROM = 4e8


class _Shapes:
    """The arguments of a program, told apart by structure, shapes and types only."""

    def __init__(self, *arguments: Any):
        leaves, tree = jax.tree.flatten(arguments)
        self._key = tree, tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for leaf in leaves]
        self.arguments = jax.tree.unflatten(tree, shapes)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shapes) and self._key == other._key


@lru_cache(maxsize=8)
def _initial_state(optimizer: OptimizerConfig, steps: int, place: NamedSharding) -> Wrapped:
    return jax.jit(lambda model: init_state(model, make_optimizer(optimizer, steps)), out_shardings=place)


@lru_cache(maxsize=8)
def _compiled(
    optimizer: OptimizerConfig,
    steps: int,
    sizes: tuple[int, int, int],
    mesh: Mesh,
    nats: Callable[..., Float[Array, ""]],
    shapes: _Shapes,
) -> Compiled:
    """Compile steps with batches, blocks and accumulation of `sizes`, once for runs that differ in their `Hyper`."""
    batch_size, block_size, accumulation = sizes
    advance = make_advance(
        lambda rate: make_optimizer(optimizer, steps, rate),
        batch_size,
        block_size,
        mesh,
        accumulation=accumulation,
        nats=nats,
    )
    return advance.lower(*shapes.arguments, 1, Hyper(0, 1.0)).compile()


class GradientTrainer:
    """AdamW or another optimizer on random windows of `tokens`, for `train.steps` steps."""

    def __init__(
        self,
        initialize: Callable[[Key[Array, ""]], LanguageModel],
        tokens: Int[np.ndarray, " L"],
        block_size: int,
        train: TrainConfig,
        optimizer: OptimizerConfig,
    ):
        self._initialize, self._tokens, self._block_size = initialize, tokens, block_size
        self._train, self._optimizer, self.total_steps = train, optimizer, train.steps
        self.mesh = data_mesh(train.batch_size // train.accumulation)
        # Without what is an argument of the compiled program.
        self._shared: Any = optimizer.replace(learning_rate=1.0)

    def init(self) -> State:
        """Return the state before the first step, on every device."""
        key, optimizer = init_key(self._train.seed), make_optimizer(self._optimizer, self._train.steps)
        shapes = jax.eval_shape(lambda key: init_state(self._initialize(key), optimizer), key)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.model))
        require_memory(bytes_of(shapes), f"a model of {parameters:,} parameters")
        place = replicated(self.mesh)
        model = jax.jit(self._initialize, out_shardings=place)(key)
        return _initial_state(self._shared, self._train.steps, place)(model)

    def _nats(self, model: LanguageModel) -> Callable[..., Float[Array, ""]]:
        rows = self._train.batch_size // self._train.accumulation
        flops = 3 * model.flops(self._block_size) * rows * self._block_size
        one_cpu = [device.platform for device in jax.devices()] == ["cpu"]
        halved = one_cpu and model.halves_overlap and rows > 1 and flops >= HALVED_FROM
        return sum_nats_in_halves if halved else sum_nats

    def run(self, state: State, pauses: tuple[int, ...] = ()) -> Iterator[Event]:
        """Train from `state` to `train.steps`, pausing at least at multiples of `pauses`."""
        train, steps = self._train, self._train.steps
        first = step = int(state.step)
        if step >= steps:
            return
        clock = time.perf_counter()
        tokens = jax.device_put(self._tokens, replicated(self.mesh))
        hyper = Hyper(train.seed, self._optimizer.learning_rate)
        sizes = (train.batch_size, self._block_size, train.accumulation)
        program = _compiled(self._shared, steps, sizes, self.mesh, self._nats(state.model), _Shapes(state, tokens))
        require_memory(program_memory(program), f"a batch of {train.batch_size:,} x {self._block_size:,} tokens")
        compilation = duration(time.perf_counter() - clock)
        yield Event(step, state, np.empty(0), 0.0, note=f"compiled in {compilation} for {device_names(self.mesh)}")

        count, elapsed = 8, 0.0
        while step < steps:
            edge = min([steps, *(step - step % pause + pause for pause in pauses)])
            count = max(1, min(count, edge - step, MAX_STEPS_PER_DISPATCH))
            start = time.perf_counter()
            state, losses = program(state, tokens, count, hyper)
            losses = np.asarray(jax.block_until_ready(losses))[:count]
            seconds = time.perf_counter() - start
            if not np.isfinite(losses).all():
                bad = int(np.argmin(np.isfinite(losses)))
                raise DivergenceError(
                    f"the loss became {losses[bad]} at step {step + bad + 1}; try a lower optimizer.learning_rate"
                )
            step, elapsed = step + count, elapsed + seconds
            rate = count * train.batch_size * self._block_size / seconds
            yield Event(
                step,
                state,
                losses,
                seconds,
                last=step == steps,
                note=f"{short(rate)} tokens/s",
                milestone=True,
                summary=self._summary(state.model, steps - first, elapsed) if step == steps else (),
            )
            count = int(count * min(8.0, DISPATCH_SECONDS / seconds))

    def _summary(self, model: LanguageModel, steps: int, seconds: float) -> tuple[str, ...]:
        speed = steps * self._train.batch_size * self._block_size / seconds
        flops = 3 * speed * model.flops(self._block_size)  # the backward pass costs twice the forward
        peak = peak_flops(jax.devices()[0].device_kind)
        share = f", {flops / self.mesh.size / peak:.1%} of the device's bfloat16 peak" if peak else ""
        return (
            f"time      {duration(seconds)} for {steps:,} steps, {short(speed)} tokens/s",
            f"          {short(flops)} flop/s in matrix products{share}",
        )
