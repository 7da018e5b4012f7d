"""One process at a time may train in a directory. The system drops the lock of a process that dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from babyjax.errors import RunError
from babyjax.files import LOCK, open_appending, refuse_link, take_lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes from training in it.

    Raises: RunError if another process does, or if the folder is not writable.
    """
    refuse_link(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_appending(folder / LOCK)
    except OSError as error:
        raise RunError(f"cannot write in the run directory {folder}: {error.strerror}") from None
    with file:
        try:
            free = take_lock(file)
        except OSError as error:
            raise RunError(f"cannot lock the run directory {folder}: {error.strerror}") from None
        if not free:
            raise RunError(f"another process is training in {folder}; wait for it or use another run_dir")
        yield
