"""The count bigram as the seed writes it, element by element: in plain Python, in JAX and, if installed, in PyTorch.

The loops of each library work on its own arrays, which are made before the clock starts.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.record import take_turns
from experiments.seed_comparison.study import WITH_TORCH, Study


def count(transition: Any, x: Any, y: Any) -> Any:
    """Add every pair of x[B, T] and y[B, T] to a table [V, V] in place."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            transition[x[i, j], y[i, j]] += 1
    return transition


def look_up(transition: Any, idx: Any, result: Any) -> Any:
    """Write the row of every token of idx[B, T] to result[B, T, V]."""
    for b in range(idx.shape[0]):
        for t in range(idx.shape[1]):
            result[b, t] = transition[idx[b, t]]
    return result


def count_in_jax(transition: Any, x: Any, y: Any) -> Any:
    """`count` with immutable arrays: each pair makes a new table."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            transition = transition.at[x[i, j], y[i, j]].add(1)
    return transition


def look_up_in_jax(transition: Any, idx: Any, _: Any) -> Any:
    """`look_up` with immutable arrays: the rows are stacked."""
    return jnp.stack([jnp.stack([transition[token] for token in row]) for row in idx])


class Library(NamedTuple):
    """The two loops, and how to convert a NumPy array to one of the library and back."""

    count: Callable[[Any, Any, Any], Any]  # pyright: ignore[reportIncompatibleMethodOverride]
    look_up: Callable[[Any, Any, Any], Any]
    array: Callable[[np.ndarray], Any]
    numpy: Callable[[Any], np.ndarray]


def libraries() -> dict[str, Library]:
    """Return the libraries that are installed."""
    installed = {
        "Python and NumPy": Library(count, look_up, np.array, np.asarray),
        "JAX": Library(count_in_jax, look_up_in_jax, jnp.array, np.asarray),
    }
    if WITH_TORCH:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        installed["PyTorch"] = Library(
            count, look_up, lambda array: torch.tensor(array, device=device), lambda tensor: tensor.numpy(force=True)
        )
    return installed


def timed(action: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return the result of an action and its seconds."""
    clock = time.perf_counter()
    result = jax.block_until_ready(action(*arguments))
    return result, time.perf_counter() - clock


def baselines(study: Study) -> dict[str, Any]:
    """Count and look up a training batch, element by element and by one indexing operation."""
    inputs, targets = study.batch
    size, table = inputs.size, study.count_matrix.astype(np.float32)
    counted, looked_up = table.copy(), table[inputs]
    np.add.at(counted, (inputs, targets), 1)
    loops = {}
    for name, library in libraries().items():
        transition, x, y = (library.array(array) for array in (table, inputs, targets))
        result = library.array(np.zeros((*inputs.shape, len(table)), np.float32))
        library.look_up(transition, x, result)  # warms up
        rows, look_up_seconds = timed(library.look_up, transition, x, result)
        difference = np.abs(library.numpy(rows) - looked_up).max()
        library.count(library.array(table), x[:1], y[:1])  # warms up
        counts, count_seconds = timed(library.count, transition, x, y)
        loops[name] = {
            "count_us": 1e6 * count_seconds / size,
            "lookup_us": 1e6 * look_up_seconds / size,
            "difference": float(max(difference, np.abs(library.numpy(counts) - counted).max())),
        }
    on_device, tokens, look_up_at_once = jnp.asarray(table), jnp.asarray(inputs), jax.jit(lambda table, idx: table[idx])
    seconds = take_turns(study.effort.rounds, it=lambda: look_up_at_once(on_device, tokens))["it"]
    difference = np.abs(np.asarray(look_up_at_once(on_device, tokens)) - looked_up).max()
    one = {"lookup_us": 1e6 * seconds / size, "difference": float(difference)}
    return {"tokens": size, "loops": loops, "one_operation": one}
