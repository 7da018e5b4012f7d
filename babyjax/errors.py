"""The errors a user can cause. Each message is one sentence or two: what was wrong and what would be right."""


class BabyjaxError(Exception):
    """Base of every error babyjax raises on purpose; a door exits with status 1."""

    exit_status = 1


class ConfigError(BabyjaxError, ValueError):
    """An option or argument that does not exist or has a value that cannot be; a door exits with status 2."""

    exit_status = 2


class DataError(BabyjaxError):
    """A corpus that cannot be read, or is too short to train on."""


class TokenError(BabyjaxError, ValueError):
    """Text or token ids outside the vocabulary."""


class CountError(BabyjaxError, OverflowError):
    """More occurrences than an int32 can count."""


class RunError(BabyjaxError):
    """A run directory that cannot be used as asked."""


class CheckpointError(RunError):
    """A checkpoint that cannot be written, or is not what it says it is."""


class DivergenceError(BabyjaxError):
    """Training that left the finite numbers."""


class OutOfMemoryError(BabyjaxError, MemoryError):
    """Sizes that do not fit the memory of the device."""
