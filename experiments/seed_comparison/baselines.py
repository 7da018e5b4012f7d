"""The count bigram as the seed writes it, element by element: in plain Python, in JAX and, where it is there, PyTorch.

The loops of every library act on its own arrays, made before the clock starts.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


def count(transition: Any, x: Any, y: Any) -> Any:
    """Adds every pair of x[B, T] and y[B, T] to a table [V, V] in place."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            transition[x[i, j], y[i, j]] += 1
    return transition


def look_up(transition: Any, idx: Any, result: Any) -> Any:
    """Writes the row of every token of idx[B, T] to result[B, T, V]."""
    for b in range(idx.shape[0]):
        for t in range(idx.shape[1]):
            result[b, t] = transition[idx[b, t]]
    return result


def count_in_jax(transition: Any, x: Any, y: Any) -> Any:
    """`count`, where arrays do not change: each pair makes another table."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            transition = transition.at[x[i, j], y[i, j]].add(1)
    return transition


def look_up_in_jax(transition: Any, idx: Any, _: Any) -> Any:
    """`look_up`, where arrays do not change: the rows are stacked."""
    return jnp.stack([jnp.stack([transition[token] for token in row]) for row in idx])


class Library(NamedTuple):
    """The two loops, and an array of NumPy's as one of theirs and back."""

    count: Callable[[Any, Any, Any], Any]  # pyright: ignore[reportIncompatibleMethodOverride]
    look_up: Callable[[Any, Any, Any], Any]
    array: Callable[[np.ndarray], Any]
    numpy: Callable[[Any], np.ndarray]


def libraries() -> dict[str, Library]:
    """The libraries that are here."""
    here = {
        "Python and NumPy": Library(count, look_up, np.array, np.asarray),
        "JAX": Library(count_in_jax, look_up_in_jax, jnp.array, np.asarray),
    }
    if importlib.util.find_spec("torch"):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        here["PyTorch"] = Library(
            count, look_up, lambda array: torch.tensor(array, device=device), lambda tensor: tensor.numpy(force=True)
        )
    return here
