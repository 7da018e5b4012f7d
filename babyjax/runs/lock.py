"""One process at a time may train in a directory. The system drops the lock of a process that dies."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from babyjax.errors import RunError
from babyjax.files import open_appending, refuse_link

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCK = ".lock"
HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
# What a file system without locks answers, some network mounts.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


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
            _lock(file.fileno())
        except OSError as error:
            if error.errno in HELD:
                raise RunError(f"another process is training in {folder}; wait for it or use another run_dir") from None
            if error.errno not in NO_LOCKS:
                raise RunError(f"cannot lock the run directory {folder}: {error.strerror}") from None
        yield
