"""Training by gradient steps on random windows: any network."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled, Wrapped
from jaxtyping import Array, Float, Int, Integer, Key

from babyjax.config import OptimizerConfig, TrainConfig
from babyjax.data.batches import is_mapped
from babyjax.errors import DivergenceError
from babyjax.models.base import LanguageModel
from babyjax.models.ops import KEEP_BARRIERS
from babyjax.processes import broadcast
from babyjax.text import compact, duration
from babyjax.training.devices import (
    bytes_per_device,
    data_mesh,
    device_names,
    peak_flops,
    program_memory,
    require_memory,
    shardings,
)
from babyjax.training.events import Event, State
from babyjax.training.optimizer import make_optimizer
from babyjax.training.source import FromFile, OnDevice
from babyjax.training.step import (
    Hyper,
    init_key,
    init_state,
    make_advance,
    sum_nats,
    sum_nats_in_halves,
    sum_nats_in_one_pass,
)

# A dispatch takes about this long: short enough for a live display and a prompt answer to Ctrl-C, and long enough that
# moving the state in and out, 20 ms for gpt-tiny on a CPU, is a small share.
DISPATCH_SECONDS = 0.5
# Flop per step from which two halves of a batch side by side pay on a CPU; smaller steps are bound by the number of
# operations.
HALVED_FROM = 4e8
# Flop per step below which runs of several seeds train side by side on an accelerator: eight of up to 5e9 were 3.7 to
# 6.6 times as fast as one after the other on an H200. On a CPU they would be slower.
SIDE_BY_SIDE_BELOW = 1e10
# Bytes of tokens in a file up to which a device holds them all.
ON_DEVICE = 1 << 27


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


def _hyper(seed: Int[np.ndarray, "*S"], learning_rate: float) -> Hyper:
    """Return what a program takes for one seed, or for an array of seeds side by side."""
    if not seed.shape:
        return Hyper(int(seed), learning_rate)
    return Hyper(jnp.asarray(seed, jnp.int32), jnp.full(seed.shape, learning_rate))


@jax.jit
def _unstack(states: State) -> list[State]:
    """Return the states of runs side by side, stacked along the first axis, one by one."""
    return [jax.tree.map(lambda leaf, index=index: leaf[index], states) for index in range(len(states.step))]


@lru_cache(maxsize=8)
def _initial_state(optimizer: OptimizerConfig, steps: int, mesh: Mesh, kind: str) -> Wrapped:
    def start(model: LanguageModel) -> State:
        state = init_state(model, make_optimizer(optimizer, steps))
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh, kind))

    return jax.jit(start)


@lru_cache(maxsize=8)
def _compiled(
    optimizer: OptimizerConfig,
    steps: int,
    sizes: tuple[int, int, int],
    mesh: Mesh,
    kind: str,
    nats: Callable[..., Float[Array, ""]],
    shapes: _Shapes,
) -> Compiled:
    """Compile steps with batches, blocks and accumulation of `sizes`, once for runs that differ in their `Hyper`.

    `shapes` are those of a state and the tokens.
    """
    batch_size, block_size, accumulation = sizes
    advance = make_advance(
        lambda rate: make_optimizer(optimizer, steps, rate),
        batch_size,
        block_size,
        mesh,
        kind,
        accumulation=accumulation,
        nats=nats,
    )
    state, tokens = shapes.arguments
    with jax.set_mesh(mesh) if mesh.size > 1 else nullcontext():
        lowered = advance.lower(state, tokens, 1, _hyper(np.zeros(state.step.shape, int), 1.0))
        return lowered.compile(KEEP_BARRIERS if jax.default_backend() == "cpu" else None)


class GradientTrainer:
    """AdamW or another optimizer on random windows of `tokens`, for `train.steps` steps."""

    def __init__(
        self,
        initialize: Callable[[Key[Array, ""]], LanguageModel],
        tokens: Integer[np.ndarray, " L"],
        block_size: int,
        train: TrainConfig,
        optimizer: OptimizerConfig,
    ):
        self._initialize, self._tokens, self._block_size = initialize, tokens, block_size
        self._train, self._optimizer, self.total_steps = train, optimizer, train.steps
        self.mesh = data_mesh(train.batch_size // train.accumulation)
        # Without what is an argument of the compiled program.
        self._shared: Any = optimizer.replace(learning_rate=1.0)

    @cached_property
    def _model(self) -> LanguageModel:
        """The model's shapes."""
        return jax.eval_shape(self._initialize, init_key(self._train.seed))

    @property
    def _flops(self) -> int:
        """Floating-point operations per token: the backward pass costs twice the forward."""
        return 3 * self._model.flops(self._block_size)

    @property
    def gains_side_by_side(self) -> bool:
        """Whether the runs of several seeds are faster side by side than one after the other.

        So they are on one accelerator that a step of one run does not fill.
        """
        step = self._flops * self._train.batch_size * self._block_size
        one = jax.default_backend() != "cpu" and self.mesh.size == 1
        return one and step < SIDE_BY_SIDE_BELOW and not self._from_file

    def init(self) -> State:
        """Return the state before the first step, on every device."""
        key, optimizer = init_key(self._train.seed), make_optimizer(self._optimizer, self._train.steps)
        shapes = jax.eval_shape(lambda model: init_state(model, optimizer), self._model)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self._model))
        places = shardings(shapes, self.mesh, self._train.mesh)
        require_memory(bytes_per_device(shapes, places), f"a model of {parameters:,} parameters")
        model = jax.jit(self._initialize, out_shardings=places.model)(key)
        return _initial_state(self._shared, self._train.steps, self.mesh, self._train.mesh)(model)

    @property
    def _from_file(self) -> bool:
        """Whether windows are read from a file as they are needed, since all tokens would fill the device."""
        return is_mapped(self._tokens) and self._tokens.nbytes > ON_DEVICE

    def _source(self, seed: Int[np.ndarray, "*S"]) -> OnDevice | FromFile:
        if not self._from_file:
            return OnDevice(self._tokens, self.mesh)
        sizes = self._train.batch_size, self._block_size
        return FromFile(self._tokens, self._model.vocab_size, int(seed), sizes, self.mesh)

    def _nats(self) -> Callable[..., Float[Array, ""]]:
        rows = self._train.batch_size // self._train.accumulation
        flops = self._flops * rows * self._block_size
        if jax.default_backend() != "cpu":
            return sum_nats_in_one_pass
        one_cpu = len(jax.devices()) == 1
        halved = one_cpu and self._model.halves_overlap and rows > 1 and flops >= HALVED_FROM
        return sum_nats_in_halves if halved else sum_nats

    def run(self, state: State, pauses: tuple[int, ...] = ()) -> Iterator[Event]:
        """Train from `state` to `train.steps`, pausing at least at multiples of `pauses`."""
        return self._run(state, np.array(self._train.seed), pauses)

    def run_side_by_side(
        self, states: Sequence[State], seeds: Sequence[int], pauses: tuple[int, ...] = ()
    ) -> Iterator[tuple[Event, ...]]:
        """Train the runs of several seeds, all at one step, in one program: as `run` trains each, except for rounding.

        Yields the events of all runs together.
        """
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        del states  # their memory is needed
        for event in self._run(together, np.array(seeds), pauses):
            rows = zip(_unstack(event.state), event.train_losses.T, strict=True)
            yield tuple(event._replace(state=state, train_losses=losses) for state, losses in rows)

    def _run(self, state: State, seed: Int[np.ndarray, "*S"], pauses: tuple[int, ...]) -> Iterator[Event]:
        train, steps = self._train, self._train.steps
        first = step = int(np.asarray(state.step).max())
        if step >= steps:
            return
        clock = time.perf_counter()
        source = self._source(seed)
        tokens, _ = source.at(step)
        hyper = _hyper(seed, self._optimizer.learning_rate)
        sizes = (train.batch_size, self._block_size, train.accumulation)
        shapes = _Shapes(state, tokens)
        program = _compiled(self._shared, steps, sizes, self.mesh, train.mesh, self._nats(), shapes)
        require_memory(program_memory(program), f"a batch of {train.batch_size:,} x {self._block_size:,} tokens")
        compilation = duration(time.perf_counter() - clock)
        note = f"compiled in {compilation} for {device_names(self.mesh)}"
        yield Event(step, state, np.empty((0, *seed.shape)), 0.0, note=note)

        count, elapsed = 8, 0.0
        while step < steps:
            edge = min([steps, *(step - step % pause + pause for pause in pauses)])
            start = time.perf_counter()
            tokens, served = source.at(step)
            count = max(1, min(broadcast(count), edge - step, served))
            state, losses = program(state, tokens, count, hyper)
            losses = np.asarray(jax.block_until_ready(losses))[:count]
            seconds = time.perf_counter() - start
            if not np.isfinite(losses).all():
                bad = tuple(np.argwhere(~np.isfinite(losses))[0])
                whose = f" of seed {seed[bad[1:]]}" if seed.shape else ""
                raise DivergenceError(
                    f"the loss{whose} became {losses[bad]} at step {step + bad[0] + 1}; "
                    "try a lower optimizer.learning_rate"
                )
            step, elapsed = step + count, elapsed + seconds
            rate = count * seed.size * train.batch_size * self._block_size / seconds
            yield Event(
                step,
                state,
                losses,
                seconds,
                last=step == steps,
                note=f"{compact(rate)} tokens/s",
                milestone=True,
                summary=self._summary(seed.size * (steps - first), elapsed) if step == steps else (),
            )
            count = int(count * min(8.0, DISPATCH_SECONDS / seconds))

    def _summary(self, steps: int, seconds: float) -> tuple[str, ...]:
        speed = steps * self._train.batch_size * self._block_size / seconds
        time = f"time      {duration(seconds)} for {steps:,} steps, {compact(speed)} tokens/s"
        if not (flops := speed * self._flops):
            return (time,)
        peak = peak_flops(jax.devices()[0].device_kind)
        share = f", {flops / self.mesh.size / peak:.1%} of the device's bfloat16 peak" if peak else ""
        return time, f"          {compact(flops)} flop/s in matrix products{share}"
