"""The cost of forward and training against B, T, V and D: seconds, and the compiler's count of FLOPs and bytes.

Each subject is measured at several sizes around a base, one axis at a time. An exponent is the slope of a line through
the three largest sizes on logarithmic axes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from babyjax import BabyGPT, PairCounts
from babyjax.counts.fit import CountsProblem, plan_restarts
from babyjax.models.bigram import add_pairs
from babyjax.training.events import State
from babyjax.training.step import train_step
from experiments.record import take_turns
from experiments.seed_comparison import baselines
from experiments.seed_comparison.study import Effort

CALLS = 5  # of what takes less time than a dispatch


class Sizes(NamedTuple):
    """Batch size, block size, vocabulary size, width."""

    B: int
    T: int
    V: int
    D: int


class Prepared(NamedTuple):
    """An action that does its work `times` times, and a program whose cost the compiler knows."""

    action: Callable[[], Any]
    times: int = 1
    program: Any = None


@dataclass(frozen=True)
class Subject:
    """What is measured, and the exponents the seed claims, if any.

    `points` limits the sizes measured, from the largest down, if compilation takes long.
    """

    name: str
    group: str
    base: Sizes
    prepare: Callable[[Sizes], Prepared]
    claimed: dict[str, int]
    axes: str = "BTVD"
    points: int = 4


def _tokens(sizes: Sizes, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, sizes.V, shape).astype(np.int32)


def _babygpt(sizes: Sizes) -> BabyGPT:
    """Make a network on the host, without compiling its initialization."""
    random, shapes = np.random.default_rng(0), ((sizes.V, sizes.D), (sizes.D, sizes.V), (sizes.V,))
    return BabyGPT.from_parameters(*(jnp.asarray(random.normal(size=shape).astype(np.float32)) for shape in shapes))


def babygpt_forward(sizes: Sizes) -> Prepared:
    model, tokens = _babygpt(sizes), jnp.asarray(_tokens(sizes, sizes.B, sizes.T))
    program = jax.jit(lambda model, tokens: model(tokens)).lower(model, tokens).compile()
    return Prepared(lambda: program(model, tokens), program=program)


def repeated(once: Callable[..., Any], *arrays: Any) -> Callable[[], Any]:
    """Return an action that runs `once(index, *arrays)` `CALLS` times in one program and keeps the last result."""

    def all_of_them(*arrays: Any) -> Any:
        return jax.lax.fori_loop(1, CALLS, lambda index, _: once(index, *arrays), once(0, *arrays))

    program = jax.jit(all_of_them).lower(*arrays).compile()
    return lambda: program(*arrays)


def lookup(sizes: Sizes) -> Prepared:
    table, tokens = jnp.ones((sizes.V, sizes.V)), jnp.asarray(_tokens(sizes, sizes.B, sizes.T))
    program = jax.jit(lambda table, tokens: table[tokens]).lower(table, tokens).compile()
    action = repeated(lambda index, table, tokens: table[(tokens + index) % sizes.V], table, tokens)
    return Prepared(action, CALLS, program)


def looped_lookup(sizes: Sizes) -> Prepared:
    table, tokens = np.ones((sizes.V, sizes.V), np.float32), _tokens(sizes, sizes.B, sizes.T)
    result = np.zeros((sizes.B, sizes.T, sizes.V), np.float32)
    return Prepared(lambda: baselines.look_up(table, tokens, result))


def adamw_step(sizes: Sizes) -> Prepared:
    optimizer, windows = optax.adamw(1e-2), jnp.asarray(_tokens(sizes, sizes.B, sizes.T + 1))
    model = _babygpt(sizes)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, model))
    state = jax.device_put(State(jnp.zeros((), jnp.int32), model, zeros))
    program = jax.jit(lambda state, windows: train_step(state, (windows[:, :-1], windows[:, 1:]), optimizer))
    program = program.lower(state, windows).compile()
    return Prepared(lambda: program(state, windows), program=program)


def counting(sizes: Sizes) -> Prepared:
    windows, table = jnp.asarray(_tokens(sizes, sizes.B, sizes.T + 1)), jnp.zeros((sizes.V, sizes.V), jnp.int32)
    program = jax.jit(lambda table, windows: add_pairs(table, windows[:, :-1], windows[:, 1:]), donate_argnums=0)
    program = program.lower(table, windows).compile()

    def action():
        nonlocal table
        for _ in range(CALLS):
            table = program(table, windows)
        return table

    return Prepared(action, CALLS, program)


def looped_counting(sizes: Sizes) -> Prepared:
    tokens, table = _tokens(sizes, sizes.B, sizes.T + 1), np.zeros((sizes.V, sizes.V), np.float32)
    return Prepared(lambda: baselines.count(table, tokens[:, :-1], tokens[:, 1:]))


def step_on_counts(sizes: Sizes) -> Prepared:
    counts = jnp.asarray(np.random.default_rng(0).integers(1, 100, (sizes.V, sizes.V)), jnp.int32)
    problem = CountsProblem(PairCounts.from_counts(counts, counts), sizes.D, plan_restarts(1, 0, 0.0, 0.0))
    start = problem.start()
    return Prepared(lambda: problem.advance(start).objective)


LARGE, SMALL = Sizes(32, 32, 512, 64), Sizes(64, 64, 128, 32)
SUBJECTS = [
    Subject("BabyGPT forward", "forward", LARGE, babygpt_forward, {"B": 1, "T": 1, "V": 0, "D": 1}),
    Subject("bigram lookup", "forward", LARGE, lookup, {"B": 1, "T": 1, "V": 0}, "BTV"),
    Subject("bigram lookup, looped", "forward", SMALL, looped_lookup, {"B": 1, "T": 1, "V": 0}, "BTV"),
    Subject("BabyGPT, AdamW step", "training", LARGE, adamw_step, {"B": 0, "T": 0, "V": 0, "D": 0}, points=3),
    Subject("counting a batch", "training", Sizes(128, 128, 256, 0), counting, {"B": 1, "T": 1, "V": 0}, "BTV"),
    Subject("counting a batch, looped", "training", SMALL, looped_counting, {"B": 1, "T": 1, "V": 0}, "BTV"),
    Subject("BabyGPT, step on counts", "training", SMALL, step_on_counts, {}, "VD", points=3),
]


def slope(sizes: list[int], values: list[float]) -> float:
    """Return the exponent: the slope of a line through the three largest sizes on logarithmic axes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(values[-3:], 1e-12)), 1)[0])


def measure(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Measure seconds, FLOPs and bytes at the sizes of each axis, and fit their exponents."""
    base = Sizes(*(round(effort.size * size) for size in subject.base))
    ranges = {
        axis: [max(1, round(factor * getattr(base, axis))) for factor in effort.factors[-subject.points :]]
        for axis in subject.axes
    }
    points = {base._replace(**{axis: size}) for axis, sizes in ranges.items() for size in sizes}
    prepared = {str(sizes): subject.prepare(sizes) for sizes in sorted(points | {base})}
    seconds = take_turns(effort.rounds, **{name: each.action for name, each in prepared.items()})

    def cost(sizes: Sizes) -> dict[str, float]:
        each = prepared[str(sizes)]
        found = {"seconds": seconds[str(sizes)] / each.times}
        if each.program is not None:
            analysis = each.program.cost_analysis()
            found |= {"flops": analysis.get("flops", 0.0), "bytes": analysis.get("bytes accessed", 0.0)}
        return found

    axes = {}
    for axis, sizes in ranges.items():
        costs = [cost(base._replace(**{axis: size})) for size in sizes]
        columns = {name: [each[name] for each in costs] for name in costs[0]}
        exponents = {name: slope(sizes, values) for name, values in columns.items()}
        axes[axis] = {"sizes": sizes, **columns, "exponents": exponents}
    return {
        "group": subject.group,
        "base": base._asdict(),
        "claimed": subject.claimed,
        "at_base": cost(base),
        "axes": axes,
    }


def scaling(effort: Effort) -> dict[str, Any]:
    """Measure every subject. Returns the results by name."""
    return {subject.name: measure(subject, effort) for subject in SUBJECTS}
