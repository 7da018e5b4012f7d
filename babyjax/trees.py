"""Pytrees by the names of their leaves: "model/lm_head/kernel", the same in every version of flax."""

from collections.abc import Callable
from typing import Any

import jax


def _name(path: tuple) -> str:
    names = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return "/".join(names[:-1] if names[-1] == "value" else names)  # an nnx.Variable's only child


def named_arrays(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """A tree of the same structure, of `function(name, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)
