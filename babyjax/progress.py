"""Progress reports of what takes long."""

from collections.abc import Callable

Progress = Callable[[str, float], None]  # what is done, and the share of it


def silent(what: str, share: float) -> None:
    """Report no progress."""
