"""The errors a user can cause. Each message is one or two sentences: what is wrong, the value, the remedy."""

import os


def debugging() -> bool:
    """Return whether BABYJAX_DEBUG=1 asks for tracebacks, and for all that libraries print."""
    return os.environ.get("BABYJAX_DEBUG") == "1"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether Python or XLA could not allocate memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


class BabyjaxError(Exception):
    """Base class of every error babyjax raises on purpose. A command exits with status 1."""

    exit_status = 1


class ConfigError(BabyjaxError):
    """Unknown option or invalid value. A command exits with status 2."""

    exit_status = 2


class DataError(BabyjaxError):
    """The corpus cannot be read or is too short."""


class TokenError(BabyjaxError, ValueError):
    """Text or token ids outside the vocabulary."""


class CountError(BabyjaxError, OverflowError):
    """More occurrences than an int32 can count."""


class RunError(BabyjaxError):
    """The run directory is missing, locked, damaged, or belongs to another run."""


class CheckpointError(RunError):
    """The checkpoint cannot be written, or was changed after it was written."""


class ProcessError(BabyjaxError):
    """The processes that train together did not find each other."""


class LostError(BabyjaxError):
    """Another process that trains together with this one cannot be reached."""


class DivergenceError(BabyjaxError):
    """The loss or a parameter became NaN or infinite."""


class OutOfMemoryError(BabyjaxError, MemoryError):
    """The sizes do not fit the memory of the device."""
