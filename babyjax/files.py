"""Reading and writing files: a kill or a full disk leaves the old file or the new one, never a piece."""

import errno
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from babyjax.errors import BabyjaxError, DataError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TEMPORARY, LOCK = ".babyjax-", ".lock"
MANIFEST = "run.json"  # of a run directory
HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
# What a file system without locks answers, some network mounts.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def replace_file(path: Path, content: str | bytes | memoryview) -> None:
    """Write bytes, or text as UTF-8, to `path` at once, never through a symbolic link there.

    Raises: OSError; the old file stays.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` if the block ends without an error, and is removed if not, also by Ctrl-C.

    Raises: DataError if there is anything in `path`, OSError.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} is not an empty folder; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY))
    try:
        with _interruptible():
            yield temporary
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp makes private folders
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt where a command has it end the process at once."""
    ends = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if ends:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ends:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_text(path: str | Path, limit: int) -> str:
    """The text of a UTF-8 file. Raises: OSError, or ValueError if it is not UTF-8 or longer than `limit` bytes."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    return data.decode("utf-8")


def user_path(text: str | os.PathLike[str], error: type[BabyjaxError]) -> Path:
    """The absolute form of a path a user typed. Raises: `error` if the system cannot use it."""
    try:
        path = Path(text).expanduser().resolve()
        str(path).encode()
        path.exists()
    except (OSError, RuntimeError, ValueError) as reason:
        raise error(
            f"{str(text)[:60]!r} is not a path this system can use ({getattr(reason, 'strerror', None) or reason})"
        ) from None
    return path


def user_cache() -> Path | None:
    """Return the folder for what can be computed or downloaded again, None if this user has no home directory."""
    try:
        return Path(platformdirs.user_cache_dir("babyjax"))
    except (KeyError, RuntimeError):
        return None


def is_temporary(path: Path) -> bool:
    """Return whether `path` has the name of a temporary file or folder, of `replace_file` or `new_folder`."""
    return path.name.startswith(TEMPORARY)


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed in `replace_file` left in `folder`."""
    for path in folder.iterdir():
        if is_temporary(path) and (path.is_file() or path.is_symlink()):
            path.unlink()


def is_run(folder: Path) -> bool:
    """Return whether there is a manifest of ours in `folder`."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return file.read(16).startswith(b'{\n "format": ')
    except OSError:
        return False


def refuse_link(path: Path) -> None:
    """Raises: BabyjaxError if `path` is a symbolic link: a run from elsewhere would have us write to other files."""
    if path.is_symlink():
        raise BabyjaxError(f"{path} is a symbolic link, and a run is never written through one; remove the link")


def open_appending(path: Path) -> BinaryIO:
    """Open a file for appending, never through a symbolic link. Raises: OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)  # not on Windows
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def take_lock(file: BinaryIO) -> bool:
    """Lock an open file for this process; return False if another holds it.

    The system drops the lock when the file is closed or the process dies. Raises: OSError.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True


def discard(stream: Any) -> None:
    """Send what is written to a failed stream to nowhere, or Python would fail again when it flushes it at exit."""
    with suppress(OSError):  # not a file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def finite_json(value: Any) -> Any:
    """Return `value` with infinity and NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
