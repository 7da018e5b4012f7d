"""One training step as a pure function, and many of them as one compiled program.

`(state, batch) -> (state, loss)`. The batch of a step depends on the step's number alone, so the position of a run is
one integer, `state.step`, and a run cut anywhere and continued is the run that never stopped.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, Float, Int, Key

from babyjax.data.batches import batch_at
from babyjax.errors import ConfigError
from babyjax.training.objective import sum_nats
from babyjax.training.throughput import training_flops

# Flop a step from which a CPU works on two halves of a batch side by side, where blocks are unrolled: XLA runs most of
# the small operations on one core, and the other half has work for the rest. Smaller steps are bound by how many
# operations there are, and two loops over blocks do not overlap.
HALVED_FROM = 4e8
# Losses a dispatch can return: the most steps it can run.
MAX_STEPS_PER_DISPATCH = 1024

Batch = tuple[Int[Array, "B T"], Int[Array, "B T"]]


class TrainState(NamedTuple):
    """Everything a run is: `step` updates have been made."""

    step: Int[Array, ""]
    model: Any
    opt_state: Any


def init_state(model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))


def train_step(
    state: TrainState,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""] | None = None,
    accumulation: int = 1,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update; the loss, in nats per token, is that of the batch before the update.

    The batch is worked through in `accumulation` parts, one in memory at a time; each adds its nats divided by the
    tokens of all. `key` is that of the step's dropout, for a model that has it.
    """

    def part(inputs: Int[Array, "b T"], targets: Int[Array, "b T"], index: Int[Array, ""] | int):
        part_key = None if key is None else jax.random.fold_in(key, index)
        return jax.value_and_grad(lambda model: _nats(model, inputs, targets, part_key) / float(batch[1].size))(
            state.model
        )

    if accumulation == 1:
        loss, gradient = part(batch[0], batch[1], 0)
    else:
        # Every part takes every k-th row: of a batch spread over devices, each has its share of every part.
        parts = [tokens.reshape(-1, accumulation, tokens.shape[1]).swapaxes(0, 1) for tokens in batch]
        nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.model))

        def add(sums, inputs_targets_index):
            return jax.tree.map(jnp.add, sums, part(*inputs_targets_index)), None

        (loss, gradient), _ = jax.lax.scan(add, nothing, (*parts, jnp.arange(accumulation)))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.model)
    return TrainState(state.step + 1, optax.apply_updates(state.model, updates), opt_state), loss


def _nats(model, inputs: Int[Array, "b T"], targets: Int[Array, "b T"], key: Key[Array, ""] | None):
    """`sum_nats`, where it pays as the sum of two halves that do not wait for each other: the same but for rounding."""
    one_cpu = [device.platform for device in jax.devices()] == ["cpu"]
    unrolled = 0 < model.n_layer <= model.unroll
    large = training_flops(model, inputs.shape[1]) * inputs.size >= HALVED_FROM
    # Halves would drop out other numbers than the whole does, here or on another device.
    if not (one_cpu and unrolled and large) or len(inputs) == 1 or key is not None:
        return sum_nats(model, inputs, targets, key)
    return sum(sum_nats(model, inputs[half::2], targets[half::2]) for half in range(2))


def start_key(seed: int) -> Key[Array, ""]:
    """The key of a run's random start: a stream no batch uses, since no run has that many steps."""
    return jax.random.fold_in(jax.random.key(seed), 2**31 - 1)


def dropout_key(seed: int, step: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of a step's dropout, of a stream no batch and no start uses."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 2), step)


def make_advance(
    optimizer: optax.GradientTransformation,
    seed: int,
    batch_size: int,
    block_size: int,
    mesh: Mesh | None = None,
    *,
    accumulation: int = 1,
) -> Wrapped:
    """`advance(state, tokens, count)`: `count` steps in one dispatch, and their losses in the first `count` places.

    `state` is donated. `count` is an argument of the program and not of its shape: a single compilation serves any
    number of steps, so results do not depend, to the bit, on how a run is cut into dispatches. With a `mesh` each of
    its devices works on its part of the batch. Raises `ConfigError` where the batch has not `accumulation` equal parts.
    """

    if batch_size % accumulation:
        raise ConfigError(f"a batch of {batch_size} has not {accumulation} equal parts; change train.accumulation")

    @partial(jax.jit, donate_argnums=0)
    def advance(state: TrainState, tokens: Int[Array, " L"], count: Int[Array, ""]):
        def body(index, carry):
            state, losses = carry
            batch = batch_at(tokens, seed, state.step, batch_size, block_size)
            if mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))
            key = dropout_key(seed, state.step) if getattr(state.model, "dropout", 0) else None
            state, loss = train_step(state, batch, optimizer, key, accumulation)
            return state, losses.at[index].set(loss)

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(MAX_STEPS_PER_DISPATCH)))

    return advance
