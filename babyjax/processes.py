"""The processes of a run: each has devices of its own, on one machine or on many, and JAX connects them.

Process 0 writes the run and shows it. All take every step together, so they agree on what only one of them knows: what
its clock says, and which signal it received. Every process must call the functions that agree, and in the same order.
"""

import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, Shaped, UInt32

from babyjax.config import Config
from babyjax.errors import ConfigError, LostError, ProcessError
from babyjax.native_output import LOST, hold_native_output

Tree = TypeVar("Tree")
# A process that is silent for so long is taken for dead, and then all others end.
SILENCE_SECONDS = 30


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Connect this process with the others, before anything else asks JAX for devices.

    What libraries print is held back until this process ends. Raises: ConfigError or ProcessError if the processes do
    not find each other, LostError if one cannot be reached later.
    """
    hold_native_output()
    _connect(config)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has caught it, to tell whoever asks for preemptions
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_lost(error):
            raise
        raise LostError(LOST) from error


def is_lost(error: Exception) -> bool:
    """Return whether an error of JAX or Orbax says that another process cannot be reached."""
    words = ("gloo", "nccl", "peer", "coordination", "unavailable", "barrier")
    return any(word in str(error).lower() for word in words)


def _connect(config: Config) -> None:
    chosen = config.processes
    given = {"coordinator_address": chosen.coordinator, "num_processes": chosen.processes, "process_id": chosen.process}
    try:
        jax.distributed.initialize(**(given if chosen.coordinator else {}), heartbeat_timeout_seconds=SILENCE_SECONDS)
    except (ValueError, KeyError, RuntimeError) as error:
        if config.distributed == "auto" and not isinstance(error, RuntimeError):
            raise ConfigError(
                "distributed=auto knows no cluster here (it knows Slurm, Open MPI, Kubernetes and Cloud TPUs); give "
                "distributed.coordinator=HOST:PORT, distributed.processes= and distributed.process="
            ) from error
        where, reason = chosen.coordinator or "the coordinator", str(error).partition("\n")[0][:200]
        raise ProcessError(f"the processes did not find each other at {where}: {reason}") from error


def is_multiprocess() -> bool:
    """Return whether other processes train this run too."""
    return jax.process_count() > 1


def is_main_process() -> bool:
    """Return whether this process writes the run and shows it."""
    return jax.process_index() == 0


def broadcast(number: int) -> int:
    """Return the number that process 0 has, an int32."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if is_multiprocess() else number


def same_everywhere(text: str) -> bool:
    """Return whether all processes have the same text."""
    if not is_multiprocess():
        return True
    digests = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    return bool((digests == digests[0]).all())


def max_over_processes(number: int) -> int:
    """Return the highest number that a process has, an int32."""
    return int(multihost_utils.process_allgather(np.int32(number)).max()) if is_multiprocess() else number


def sum_over_processes(sums: UInt32[np.ndarray, " N"]) -> UInt32[np.ndarray, " N"]:
    """Add up what each process has, modulo 2**32."""
    return multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32) if is_multiprocess() else sums


def to_devices(array: Shaped[np.ndarray, "..."], where: Sharding) -> Array:
    """Put on devices an array that every process has. Each process puts its own shards."""
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def gather(tree: Tree) -> Tree:
    """Return a pytree on this process's own devices, if other processes have parts of it."""
    return jax.tree.map(to_host, tree) if is_multiprocess() else tree


def to_host(array: Any) -> Shaped[np.ndarray, "..."]:
    """Return the whole of an array of which each process may have a part."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
