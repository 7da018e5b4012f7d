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
from babyjax.training.objective import mean_nats

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
    state: TrainState, batch: Batch, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Float[Array, ""]]:
    """One update; the loss, in nats per token, is that of the batch before the update."""
    loss, gradient = jax.value_and_grad(mean_nats)(state.model, *batch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.model)
    return TrainState(state.step + 1, optax.apply_updates(state.model, updates), opt_state), loss


def start_key(seed: int) -> Key[Array, ""]:
    """The key of a run's random start: a stream no batch uses, since no run has that many steps."""
    return jax.random.fold_in(jax.random.key(seed), 2**31 - 1)


def make_advance(
    optimizer: optax.GradientTransformation, seed: int, batch_size: int, block_size: int, mesh: Mesh | None = None
) -> Wrapped:
    """`advance(state, tokens, count)`: `count` steps in one dispatch, and their losses in the first `count` places.

    `state` is donated. `count` is an argument of the program and not of its shape: a single compilation serves any
    number of steps, so results do not depend, to the bit, on how a run is cut into dispatches. With a `mesh` each of
    its devices works on its part of the batch.
    """

    @partial(jax.jit, donate_argnums=0)
    def advance(state: TrainState, tokens: Int[Array, " L"], count: Int[Array, ""]):
        def body(index, carry):
            state, losses = carry
            batch = batch_at(tokens, seed, state.step, batch_size, block_size)
            if mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))
            state, loss = train_step(state, batch, optimizer)
            return state, losses.at[index].set(loss)

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(MAX_STEPS_PER_DISPATCH)))

    return advance
