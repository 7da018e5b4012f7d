"""One training step as a pure function, and many of them as one compiled program.

`(state, batch) -> (state, loss)`. The batch of a step depends only on the seed and the step number, so the position of
a run is one integer, `state.step`, and a run that is stopped anywhere and continued equals the run that never stopped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped
from jaxtyping import Array, Float, Int, Integer, Key

from babyjax.data.batches import batch_at
from babyjax.errors import ConfigError
from babyjax.models.base import LanguageModel
from babyjax.models.ops import cross_entropy, cross_entropy_reference
from babyjax.training.devices import replicated, sharded, shardings
from babyjax.training.events import State

# Losses one dispatch can return: the most steps it can run.
MAX_STEPS_PER_DISPATCH = 1024
# Streams of random numbers that no step's batch uses, since no run has that many steps.
INIT_STREAM, DROPOUT_STREAM = 2**31 - 1, 2**31 - 2

Batch = tuple[Int[Array, "B T"], Int[Array, "B T"]]
Rate = Float[Array, ""] | float
MakeOptimizer = Callable[[Rate], optax.GradientTransformation]


class Hyper(NamedTuple):
    """What runs may differ in and still share one compiled program. Arrays [S] are S runs that train side by side."""

    seed: Int[Array, "*S"] | int
    learning_rate: Float[Array, "*S"] | float


def init_key(seed: int) -> Key[Array, ""]:
    """Return the key of a run's initialization."""
    return jax.random.fold_in(jax.random.key(seed), INIT_STREAM)


def dropout_key(seed: Int[Array, ""] | int, step: Int[Array, ""] | int) -> Key[Array, ""]:
    """Return the key of a step's dropout."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), step)


def init_state(model: LanguageModel, optimizer: optax.GradientTransformation) -> State:
    """Return the state before the first step."""
    parameters: Any = model  # optax's types do not know that a module is a pytree
    return State(jnp.zeros((), jnp.int32), model, optimizer.init(parameters))


def sum_nats(
    model: LanguageModel, inputs: Int[Array, "B T"], targets: Int[Array, "B T"], key: Key[Array, ""] | None = None
) -> Float[Array, ""]:
    """Return the cross-entropy of the targets, summed over a batch, in nats."""
    return jnp.sum(cross_entropy_reference(model(inputs, key=key), targets))


def sum_nats_in_one_pass(
    model: LanguageModel, inputs: Int[Array, "B T"], targets: Int[Array, "B T"], key: Key[Array, ""] | None = None
) -> Float[Array, ""]:
    """Return `sum_nats`, with a gradient that passes over the logits once, which is faster on accelerators."""
    return jnp.sum(cross_entropy(model(inputs, key=key), targets))


def sum_nats_in_halves(
    model: LanguageModel, inputs: Int[Array, "B T"], targets: Int[Array, "B T"], key: Key[Array, ""] | None = None
) -> Float[Array, ""]:
    """Return `sum_nats` as the sum of two halves of the batch that do not wait for each other.

    On a CPU XLA runs most small operations on one core; the other half has work for the rest. Steps of gpt-tiny's size
    gain 6 to 8 % on two cores. The result is the same except for rounding.
    """
    return sum((sum_nats(model, inputs[half::2], targets[half::2], key) for half in range(2)), start=jnp.zeros(()))


def train_step(
    state: State,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""] | None = None,
    *,
    accumulation: int = 1,
    nats: Callable[..., Float[Array, ""]] = sum_nats,
) -> tuple[State, Float[Array, ""]]:
    """Make one update. Returns the new state and the loss of the batch before it, in nats per token.

    The batch is worked through in `accumulation` equal parts, one in memory at a time. `key` is for dropout.
    """

    def part(inputs: Int[Array, "b T"], targets: Int[Array, "b T"], index: Int[Array, ""] | int):
        part_key = None if key is None else jax.random.fold_in(key, index)
        return jax.value_and_grad(lambda model: nats(model, inputs, targets, part_key) / float(batch[1].size))(
            state.model
        )

    if accumulation == 1:
        loss, gradient = part(batch[0], batch[1], 0)
    else:
        # Part i takes the rows i, i + accumulation, ...: every device has its share of every part.
        parts = [tokens.reshape(-1, accumulation, tokens.shape[1]).swapaxes(0, 1) for tokens in batch]
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.model))

        def add(sums, inputs_targets_index):
            return jax.tree.map(jnp.add, sums, part(*inputs_targets_index)), None

        (loss, gradient), _ = jax.lax.scan(add, zero, (*parts, jnp.arange(accumulation)))
    model: Any = state.model
    updates, rest = optimizer.update(gradient, state.rest, model)
    model = optax.apply_updates(model, updates)
    return State(state.step + 1, model, rest), loss


def make_advance(
    make_optimizer: MakeOptimizer,
    batch_size: int,
    block_size: int,
    mesh: Mesh | None = None,
    kind: str = "data",
    *,
    accumulation: int = 1,
    nats: Callable[..., Float[Array, ""]] = sum_nats,
) -> Wrapped:
    """Return `advance(state, tokens, count, hyper) -> (state, losses)`: `count` steps in one dispatch.

    `tokens` are a text or windows that were read from one, as `batch_at` says.

    The losses are the first `count` rows, [K] or [K, S] as `hyper` is of one run or of S; `count` may be up to K,
    `MAX_STEPS_PER_DISPATCH`, and the losses of later steps are not kept. `state` is donated. `count`,
    the seed and the learning rate are arguments of the program, not part of it: one compilation serves any number of
    steps, so results do not depend, to the bit, on how a run is cut into dispatches. With a `mesh` each of its devices
    works on its part of the batch, and holds the state or its share of it, by `kind` (see `devices.shardings`).

    Raises: ConfigError if `accumulation` does not divide `batch_size`.
    """
    if accumulation < 1 or batch_size % accumulation:
        raise ConfigError(f"train.accumulation={accumulation} does not divide train.batch_size={batch_size}")

    @partial(jax.jit, donate_argnums=0)
    def advance(state: State, tokens: Integer[Array, "..."], count: Int[Array, ""] | int, hyper: Hyper):
        def placed(state: State, losses: Float[Array, "K *S"]) -> tuple[State, Float[Array, "K *S"]]:
            if mesh is None or mesh.size == 1:
                return state, losses
            places = shardings(state, mesh, kind), replicated(mesh)
            return jax.lax.with_sharding_constraint((state, losses), places)

        def step(state: State, hyper: Hyper) -> tuple[State, Float[Array, ""]]:
            batch = batch_at(tokens, hyper.seed, state.step, batch_size, block_size)
            if mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, sharded(mesh, "data"))
            optimizer, key = make_optimizer(hyper.learning_rate), dropout_key(hyper.seed, state.step)
            return train_step(state, batch, optimizer, key, accumulation=accumulation, nats=nats)

        side_by_side = jnp.shape(hyper.seed)
        step = jax.vmap(step) if side_by_side else step

        def body(index, carry: tuple[State, Float[Array, "K *S"]]) -> Any:
            state, loss = step(carry[0], hyper)
            return placed(state, carry[1].at[index].set(loss))

        losses = jnp.zeros((MAX_STEPS_PER_DISPATCH, *side_by_side))
        return placed(*jax.lax.fori_loop(0, count, body, (state, losses)))

    return advance
