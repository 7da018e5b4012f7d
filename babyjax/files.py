"""Writing files so that a kill or a full disk leaves the old one or the new one, never a piece."""

import os
from pathlib import Path

from babyjax.errors import BabyjaxError

UNFINISHED = ".unfinished"


def replace_file(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` at once. Raises `OSError` where that fails; what was there is then there still."""
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    os.replace(unfinished, path)


def user_path(text: str | os.PathLike[str], error: type[BabyjaxError]) -> Path:
    """A path a user typed, made absolute. Raises `error` where it cannot be one."""
    try:
        path = Path(text).expanduser().resolve()
        str(path).encode()
        path.exists()
    except (OSError, RuntimeError, ValueError) as reason:
        raise error(
            f"{str(text)!r} is not a path this system can use ({getattr(reason, 'strerror', None) or reason})"
        ) from None
    return path
