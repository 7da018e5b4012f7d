"""The count bigram as the seed writes it, element by element: in plain Python, in JAX and, where it is there, PyTorch.

Each library has the two loops of the seed, and is held against one indexing operation of babyjax: same numbers.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int


class Loops(NamedTuple):
    """`count_pairs(inputs, targets, vocab_size)` is a table, `look_up(table, inputs)` its rows, all of them NumPy's."""

    count_pairs: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    look_up: Callable[[np.ndarray, np.ndarray], np.ndarray]


def python_count(inputs: Int[np.ndarray, "B T"], targets: Int[np.ndarray, "B T"], vocab_size: int) -> np.ndarray:
    transition = np.zeros((vocab_size, vocab_size), np.float32)
    for i in range(inputs.shape[0]):
        for j in range(inputs.shape[1]):
            transition[inputs[i, j], targets[i, j]] += 1
    return transition


def python_lookup(transition: np.ndarray, inputs: Int[np.ndarray, "B T"]) -> np.ndarray:
    result = np.zeros((*inputs.shape, transition.shape[1]), np.float32)
    for b in range(inputs.shape[0]):
        for t in range(inputs.shape[1]):
            result[b, t] = transition[inputs[b, t]]
    return result


def jax_count(inputs: Int[np.ndarray, "B T"], targets: Int[np.ndarray, "B T"], vocab_size: int) -> np.ndarray:
    transition = jnp.zeros((vocab_size, vocab_size))
    for i in range(inputs.shape[0]):
        for j in range(inputs.shape[1]):
            transition = transition.at[inputs[i, j], targets[i, j]].add(1)
    return np.asarray(transition)


def jax_lookup(transition: np.ndarray, inputs: Int[np.ndarray, "B T"]) -> np.ndarray:
    table = jnp.asarray(transition)
    return np.asarray(jnp.stack([jnp.stack([table[token] for token in row]) for row in inputs]))


def torch_count(inputs: Int[np.ndarray, "B T"], targets: Int[np.ndarray, "B T"], vocab_size: int) -> np.ndarray:
    import torch

    device = _torch_device(torch)
    x, y = (torch.tensor(tokens, dtype=torch.long, device=device) for tokens in (inputs, targets))
    transition = torch.zeros((vocab_size, vocab_size), device=device)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            transition[x[i, j], y[i, j]] += 1
    return transition.numpy(force=True)


def torch_lookup(transition: np.ndarray, inputs: Int[np.ndarray, "B T"]) -> np.ndarray:
    import torch

    device = _torch_device(torch)
    table, idx = torch.tensor(transition, device=device), torch.tensor(inputs, dtype=torch.long, device=device)
    result = torch.zeros((*idx.shape, table.shape[1]), device=device)
    for b in range(idx.shape[0]):
        for t in range(idx.shape[1]):
            result[b, t] = table[idx[b, t]]
    return result.numpy(force=True)


def _torch_device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def loops() -> dict[str, Loops]:
    """The loops of every library that is here."""
    here = {"Python and NumPy": Loops(python_count, python_lookup), "JAX": Loops(jax_count, jax_lookup)}
    if importlib.util.find_spec("torch"):
        here["PyTorch"] = Loops(torch_count, torch_lookup)
    return here
