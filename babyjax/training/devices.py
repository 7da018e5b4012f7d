"""The devices a run uses, and whether it fits them."""

import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from babyjax.errors import OutOfMemoryError


def data_mesh(batch_size: int) -> Mesh:
    """A mesh with one axis, "data", of as many devices as divide a batch evenly."""
    devices = jax.devices()
    count = next(count for count in range(len(devices), 0, -1) if batch_size % count == 0)
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device of `mesh` holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def memory_of(device: Any) -> int | None:
    """Bytes of memory of a device, or of this machine for a CPU; None where nobody says."""
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):  # not on Windows
            return None
    return (device.memory_stats() or {}).get("bytes_limit")


def require_memory(needed: int, what: str) -> None:
    """Raises `OutOfMemoryError` where `needed` bytes for `what` cannot fit: before the system kills the process."""
    available = memory_of(jax.devices()[0])
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"{what} needs {needed / 2**30:,.1f} GiB, this device has {available / 2**30:,.1f}; "
            "a smaller model, batch or vocabulary may fit"
        )


def program_memory(program: Compiled) -> int:
    """Bytes a compiled program holds while it runs, as the compiler plans it."""
    plan = program.memory_analysis()
    if plan is None:
        return 0
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
