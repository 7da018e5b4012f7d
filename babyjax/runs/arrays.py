"""A pytree on disk: named arrays written and read by Orbax, and checked by their digest. Nothing is pickled."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array

from babyjax.errors import CheckpointError, DivergenceError, LostError
from babyjax.native_output import LOST
from babyjax.processes import is_lost, is_main_process, is_multiprocess
from babyjax.runs.array_digest import Arrays, digest_of_sums, sums_of
from babyjax.trees import named_arrays

Tree = TypeVar("Tree")
ORBAX = Lock()  # it mixes up what two threads of a process save at the same time
UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax names the folder of a step, after its number, until it is complete
# Bytes read at once: to check a checkpoint, and to use it, unless a sixteenth of it is more.
CHECKED, USED = 1 << 30, 1 << 26
Place = Callable[[str], Sharding | None]


def arrays_to_save(tree: Any, step: int) -> Arrays:
    """Return the arrays of a pytree: copies on the host, or themselves if other processes have parts of them.

    Raises: DivergenceError if a number is NaN or infinite.
    """
    arrays = {name: leaf for name, leaf in named_arrays(tree).items() if np.size(leaf)}  # Orbax saves no empty ones
    if is_multiprocess():
        finite = {name: bool(flag) for name, flag in _finite(_floating(arrays)).items()}
    else:
        arrays = {name: np.array(leaf) for name, leaf in arrays.items()}
        finite = {name: np.isfinite(array).all() for name, array in _floating(arrays).items()}
    for name, flag in finite.items():
        if not flag:
            raise DivergenceError(f"{name} has NaN or infinite values after step {step:,}")
    return arrays


def _floating(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


@jax.jit
def _finite(arrays: Arrays) -> dict[str, Array]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}


def begin_writing(path: Path, arrays: Arrays) -> Callable[[], None]:
    """Begin to write arrays to the folder `path`, and return a function that waits until it is complete.

    If other processes have parts, every process must call this; each writes its own, and the arrays may change
    afterwards. If not, they are written in the function that is returned, and `arrays` is emptied.

    Both raise: CheckpointError if they cannot be written, LostError if another process is lost.
    """
    if not is_multiprocess():
        return partial(_write, path, arrays)
    from orbax.checkpoint import v1 as ocp

    with _explained(), _saving(arrays):
        response = ocp.save_async(str(path), arrays)

    def end() -> None:
        with _explained():
            response.result()

    return end


def _write(path: Path, arrays: Arrays) -> None:
    from orbax.checkpoint import v1 as ocp  # takes a second to import, and the first step need not wait for it

    with _explained():
        # Orbax says at once that it cannot make its folder, but its threads then keep the process for five minutes.
        probe = path.with_name(f"{path.name}{UNFINISHED}-probe")
        probe.mkdir(exist_ok=True)
        probe.rmdir()
        with ORBAX, _saving(arrays):
            ocp.save(str(path), arrays)
    arrays.clear()  # what is read back takes their memory


def _saving(arrays: Arrays) -> Any:
    """Return Orbax's context to save in. It compresses the integers of counts and n-grams; floats alone would become
    8 % smaller and take twice as long to read.
    """
    from orbax.checkpoint import v1 as ocp

    integers = sum(array.nbytes for array in arrays.values() if array.dtype.kind in "iu")
    context = ocp.Context()
    context.array.saving.use_compression = 4 * integers > sum(array.nbytes for array in arrays.values())
    return context


def check_arrays(path: Path, digest: str) -> None:
    """Read arrays back, about a gigabyte at a time, and compare their digest; process 0 does, if there are several.

    Raises: CheckpointError if they are damaged or changed.
    """
    with _explained(path):
        shapes, sums = _shapes(path), {}
        for names in _groups(shapes, CHECKED):
            # Orbax counts what each process loads, and saves only if all count alike: the others read one array.
            sums |= sums_of(_load_alone(path, shapes, names if is_main_process() else names[:1]))
    if is_main_process() and digest_of_sums(shapes, sums) != digest:
        raise CheckpointError(f"{path} was changed after it was written")


def _groups(shapes: dict[str, np.ndarray], size: int) -> Iterator[list[str]]:
    """Divide the names of arrays, the largest first, into groups of about `size` bytes."""
    names: list[str] = []
    for name in sorted(shapes, key=lambda name: (-shapes[name].nbytes, name)):
        names.append(name)
        if sum(shapes[each].nbytes for each in names) >= size:
            yield names
            names = []
    if names:
        yield names


def read_arrays(path: Path, digest: str, place: Place = lambda name: None, part: str = "") -> Arrays:
    """Read arrays and compare their digest. Those with a `place` go there, the others to the host.

    With `part` only those whose names begin with it are returned, on the default device. Arrays are read some at a
    time, since reading takes twice their memory. Raises: CheckpointError if they are damaged or changed.
    """
    arrays: Arrays = {}
    with _explained(path):
        shapes, sums = _shapes(path), {}
        if part and jax.default_backend() == "cpu" and not is_multiprocess():
            # JAX shares memory only if it is aligned, as that of its devices is and most of NumPy's is not.
            cpu = SingleDeviceSharding(jax.devices()[0])
            narrow = (name for name, shape in shapes.items() if shape.dtype.itemsize < 8)  # JAX would round the others
            place = {name: cpu for name in narrow if name.startswith(part)}.get
        for names in _groups(shapes, max(USED, sum(each.nbytes for each in shapes.values()) // 16)):
            loaded = _load(path, shapes, names, place)
            sums |= sums_of(loaded)
            kept = {name: array for name, array in loaded.items() if name.startswith(part)}
            # Orbax binds arrays to a device. As NumPy arrays, which share their memory, they are free to move.
            arrays |= jax.block_until_ready(jax.device_put(jax.tree.map(np.asarray, kept))) if part else kept
    if digest_of_sums(shapes, sums) != digest:
        raise CheckpointError(f"{path} was changed after it was written")
    return arrays


def _shapes(path: Path) -> dict[str, np.ndarray]:
    """Return arrays, without memory, that have the names, shapes and types of those on disk."""
    from orbax.checkpoint import v1 as ocp

    with ORBAX:
        found: Any = ocp.metadata(str(path)).metadata
    if not found:
        raise CheckpointError("it has no list of its arrays")
    return {name: np.broadcast_to(np.zeros((), each.dtype), each.shape) for name, each in found.items()}


def _load(path: Path, shapes: dict[str, np.ndarray], names: Sequence[str], place: Place = lambda name: None) -> Arrays:
    from orbax.checkpoint import v1 as ocp

    def wanted(name: str, shape: np.ndarray) -> Any:
        if name not in names:
            return ocp.PLACEHOLDER
        where = place(name)
        return shape if where is None else jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    with ORBAX:
        arrays = ocp.load(str(path), {name: wanted(name, shape) for name, shape in shapes.items()})
    return {name: arrays[name] for name in names}


def _load_alone(path: Path, shapes: dict[str, np.ndarray], names: Sequence[str]) -> Arrays:
    """Load some arrays to the host without waiting for other processes."""
    from orbax.checkpoint import v1 as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    with ocp.Context(multiprocessing_options=alone) if is_multiprocess() else nullcontext():
        return _load(path, shapes, names)


@contextmanager
def _explained(path: Path | None = None) -> Iterator[None]:
    """Turn the many kinds of errors that Orbax raises into one sentence; `path` is what was being read, if anything."""
    try:
        yield
    except Exception as error:
        if is_multiprocess() and is_lost(error):
            raise LostError(LOST) from error
        reason = _reason(error)
        raise CheckpointError(f"{path} cannot be read ({reason})" if path else reason) from error


def _reason(error: Exception) -> str:
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    text = " ".join(str(error).split()).partition(" [tensorstore_spec=")[0] or type(error).__name__
    return text if len(text) < 200 else f"{text[:60]} ... {text[-120:]}"  # TensorStore says last what happened


def placement_of(template: Any) -> Place:
    """Return where the arrays of a pytree are that are on devices."""
    return {name: leaf.sharding for name, leaf in named_arrays(template).items() if isinstance(leaf, jax.Array)}.get


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
        if isinstance(leaf, np.ndarray | np.generic) or isinstance(arrays[name], jax.Array)
        else jax.device_put(arrays[name], getattr(leaf, "sharding", None))
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
