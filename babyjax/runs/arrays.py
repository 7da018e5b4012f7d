"""A pytree on disk: named arrays written by Orbax, and one sha256 of them all. Nothing is pickled."""

import hashlib
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import jax
import numpy as np

from babyjax.errors import CheckpointError, DivergenceError
from babyjax.trees import named_arrays

Tree = TypeVar("Tree")
Arrays = dict[str, np.ndarray]
ORBAX = Lock()  # it mixes up what two threads of a process save at the same time
UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax names the folder of a step, after its number, until it is complete


def host_copy(tree: Any, step: int) -> Arrays:
    """Copy the arrays of a pytree to the host. Raises: DivergenceError if a number is NaN or infinite."""
    arrays = {name: np.array(leaf) for name, leaf in named_arrays(tree).items() if np.size(leaf)}  # for Orbax
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DivergenceError(f"{name} has NaN or infinite values after step {step:,}")
    return arrays


def digest_of(arrays: Arrays) -> str:
    """Return the sha256 of the names, types, shapes and bytes of arrays."""
    hashed = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        hashed.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays to the folder `path`, which appears when it is complete. Raises: CheckpointError."""
    from orbax.checkpoint import v1 as ocp  # takes a second to import, and the first step need not wait for it

    try:
        # Orbax says at once that it cannot make its folder, but its threads then keep the process for five minutes.
        probe = path.with_name(f"{path.name}{UNFINISHED}-probe")
        probe.mkdir(exist_ok=True)
        probe.rmdir()
        with ORBAX:
            ocp.save(str(path), arrays)
    except Exception as error:  # Orbax raises many kinds
        raise CheckpointError(_reason(error)) from error


def read_arrays(path: Path, sha256: str) -> Arrays:
    """Read arrays back and compare their digest. Raises: CheckpointError if they are damaged or changed."""
    from orbax.checkpoint import v1 as ocp

    try:
        with ORBAX:
            arrays = ocp.load(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)})") from error
    if digest_of(arrays) != sha256:
        raise CheckpointError(f"{path} was changed after it was written")
    return arrays


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(" [tensorstore_spec=")[0] or type(error).__name__
    return text if len(text) < 200 else f"{text[:60]} ... {text[-120:]}"  # TensorStore says last what happened


def fill(arrays: Arrays, template: Tree, part: str = "") -> Tree:
    """Put arrays into the structure of `template`, a pytree of arrays, whose devices they take, or of shapes.

    A NumPy leaf of the template stays on the host. A leaf without elements takes whatever size was saved, as the arrays
    of an n-gram model do. `part` is the path of `template` in what was saved.

    Raises: CheckpointError if a name, shape or type differs.
    """
    wanted = named_arrays({part: template} if part else template)
    arrays = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in wanted.items() if not leaf.size} | arrays
    for name, leaf in wanted.items():
        found = arrays.get(name)
        if found is not None and not leaf.size and found.ndim == len(leaf.shape):
            leaf = jax.ShapeDtypeStruct(found.shape, leaf.dtype)
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            has = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise CheckpointError(f"{name} is {has} in the checkpoint, expected {leaf.dtype}{list(leaf.shape)}")
    leaves = [
        arrays[name]
        if isinstance(leaf, np.ndarray | np.generic)
        else jax.device_put(arrays[name], getattr(leaf, "sharding", None))
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
