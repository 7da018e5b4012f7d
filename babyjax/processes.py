"""The processes of a run: each has devices of its own, on one machine or on many, and JAX connects them.

Process 0 writes the run and shows it. All of them take every step together, so what one decides by its own clock or
hears from its own system, the others have to be told, in the same order everywhere.
"""

import atexit
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
from babyjax.errors import ConfigError, ProcessError
from babyjax.native_output import LOST, hold_native_output, leave

Tree = TypeVar("Tree")
# A process that is silent for so long is taken for dead, and then all others end.
SILENCE_SECONDS = 30


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """Connect this process with the others for as long as this lasts.

    It comes before anything else asks JAX for devices. Raises: ConfigError or ProcessError if they do not find each
    other.
    """
    hold_native_output()
    _connect(config)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has caught it, to tell whoever asks for preemptions
    try:
        with _explained():
            yield
    except BaseException as error:
        # The others wait for this process in a step, and at exit JAX would wait for them.
        status = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1)
        atexit.register(leave, status)
        raise


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what JAX raises if it cannot reach another process into one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "peer", "coordination", "unavailable")):
            raise
        raise ProcessError(LOST) from error


def _connect(config: Config) -> None:
    chosen = config.processes
    given = {"coordinator_address": chosen.coordinator, "num_processes": chosen.processes, "process_id": chosen.process}
    try:
        jax.distributed.initialize(**(given if chosen.coordinator else {}), heartbeat_timeout_seconds=SILENCE_SECONDS)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            "distributed=auto knows no cluster here (it knows Slurm, Open MPI, Kubernetes and Cloud TPUs); give "
            "distributed.coordinator=HOST:PORT, distributed.processes= and distributed.process="
        ) from error
    except RuntimeError as error:
        where = chosen.coordinator or "the coordinator"
        raise ProcessError(f"the processes did not find each other at {where}: {str(error).splitlines()[0]}") from error


def several() -> bool:
    """Return whether other processes train this run too."""
    return jax.process_count() > 1


def leads() -> bool:
    """Return whether this process writes the run and shows it."""
    return jax.process_index() == 0


def agreed(number: int) -> int:
    """Return the number that process 0 has, an int32. All processes must ask, as for everything below."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if several() else number


def alike(text: str) -> bool:
    """Return whether all processes have the same text."""
    digests = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))) if several() else np.zeros(1)
    return bool((digests == digests[0]).all())


def highest(number: int) -> int:
    """Return the highest number that a process has, an int32."""
    return int(multihost_utils.process_allgather(np.int32(number)).max()) if several() else number


def total(sums: UInt32[np.ndarray, " N"]) -> UInt32[np.ndarray, " N"]:
    """Add up what each process has, modulo 2**32."""
    return multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32) if several() else sums


def place(array: Shaped[np.ndarray, "..."], where: Sharding) -> Array:
    """Put on devices an array that every process has. Each puts what belongs on its own."""
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def whole(tree: Tree) -> Tree:
    """Return a pytree on this process's own devices, if other processes have parts of it."""
    return jax.tree.map(on_host, tree) if several() else tree


def on_host(array: Any) -> Shaped[np.ndarray, "..."]:
    """Return the whole of an array of which each process may have a part."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
