"""The devices of a run, and whether it fits their memory."""

import math
import os
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.stages import Compiled

from babyjax.errors import ConfigError, OutOfMemoryError
from babyjax.processes import is_multiprocess
from babyjax.trees import map_named

# Peak dense bfloat16 flop/s by JAX's name of a device (a core of TPU v2 and v3, a chip of later ones).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


WHOLE_BELOW = 4096  # numbers in a leaf that is not worth splitting


def data_mesh(batch_size: int) -> Mesh:
    """Return a mesh with one axis, "data", of the largest number of devices that divides a batch.

    Raises: ConfigError if several processes have devices that would be left out.
    """
    devices = jax.devices()
    count = next(count for count in range(len(devices), 0, -1) if batch_size % count == 0)
    if is_multiprocess() and count < len(devices):
        raise ConfigError(
            f"{len(devices)} devices of {jax.process_count()} processes do not divide a batch of {batch_size}; choose "
            f"train.batch_size= and train.accumulation= so that each device has as many windows"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def sharded(mesh: Mesh | AbstractMesh, *axes: str | None) -> Sharding:
    """Return the sharding of an array whose axes are divided over these axes of `mesh`.

    On one device it is a `SingleDeviceSharding`, so that what training compiles, such as the evaluation, is the program
    that other commands need, and they find it in the cache.
    """
    if isinstance(mesh, Mesh) and mesh.size == 1:
        return SingleDeviceSharding(mesh.devices.flat[0])
    return NamedSharding(mesh, PartitionSpec(*axes))


def replicated(mesh: Mesh | AbstractMesh) -> Sharding:
    """Return the sharding of an array that every device of `mesh` holds whole."""
    return sharded(mesh)


def fully_sharded(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> Sharding:
    """Return the sharding of a leaf of a training state of which every device of `mesh` holds a share.

    Its longest axis that the devices divide is split, but not that of stacked blocks, which are used one after another.
    A small leaf is whole on every device (ZeRO stage 3, Rajbhandari et al. 2020).
    """
    first = int("blocks" in name.split("/"))
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.size == 0]
    if not axes or math.prod(shape) < WHOLE_BELOW:
        return replicated(mesh)
    split = max(axes, key=lambda axis: shape[axis])
    return sharded(mesh, *[None] * split, "data")


def shardings(tree: Any, mesh: Mesh | AbstractMesh, kind: str) -> Any:
    """Return the shardings of a training state, by the names and shapes of its leaves: `kind` is "data" or "fsdp"."""
    if kind == "data":
        return jax.tree.map(lambda leaf: replicated(mesh), tree)
    return map_named(lambda name, leaf: fully_sharded(name, leaf.shape, mesh), tree)


def device_names(mesh: Mesh) -> str:
    """Name the devices of a mesh: "cpu", "8 x NVIDIA H100"."""
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind}" if mesh.size > 1 else kind


def peak_flops(kind: str) -> float | None:
    """Return the peak bfloat16 flop/s of a device by its `device_kind`, None if unknown."""
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", kind)), None)


def memory_of(device: Any) -> int | None:
    """Return the bytes of memory of a device, or of this machine for a CPU; None if unknown."""
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):  # not on Windows
            return None
    return (device.memory_stats() or {}).get("bytes_limit")


def require_memory(needed: int, what: str) -> None:
    """Raises: OutOfMemoryError if `needed` bytes for `what` cannot fit, before the system kills the process."""
    available = memory_of(jax.local_devices()[0])
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"{what} needs {needed / 2**30:,.1f} GiB, this device has {available / 2**30:,.1f} GiB; "
            "use a smaller model, batch or vocabulary"
        )


def bytes_of(tree: Any) -> int:
    """Return the bytes of a pytree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree: Any, places: Any) -> int:
    """Return the bytes of a pytree of arrays or shapes on each device, by their shardings."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in leaves)


def program_memory(program: Compiled) -> int:
    """Return the bytes a compiled program holds while it runs, as the compiler plans it; 0 if unknown."""
    plan = program.memory_analysis()
    if plan is None:
        return 0
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
