"""Text files: one, or the documents of a folder or a pattern; plain text or JSON lines, either gzipped.

Every text is UTF-8. Byte-order marks at its start are dropped and line ends become "\\n", so that the same text saved
on another system is the same.
"""

import codecs
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, IncrementalNewlineDecoder
from itertools import chain
from pathlib import Path

from babyjax.errors import DataError
from babyjax.files import is_run
from babyjax.text import truncated

END_OF_TEXT = "\x03"  # U+0003, "end of text": what separates documents
TEXT = re.compile(r"\.txt(\.gz)?$", re.IGNORECASE)
JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)
MAGIC = frozenset("*?[")
CHUNK = 1 << 20  # bytes read at once


def corpus_name(path: str | os.PathLike[str]) -> str:
    """Return the name of the corpus in a file, a folder or the files of a pattern: the file's or the folder's."""
    last = Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user
    if _is_pattern(last):
        last = _fixed_part(last)
    if last.name in ("", ".."):
        return last.resolve().name or "files"
    if os.path.isdir(last):  # Path.is_dir raises for a name that is too long
        return last.name
    return Path(re.sub(r"\.gz$", "", last.name, flags=re.IGNORECASE)).stem


def _fixed_part(pattern: Path) -> Path:
    """Return the folder in which the files of a pattern are."""
    return next(folder for folder in pattern.parents if not MAGIC & set(str(folder)))


def _outside_runs(files: list[Path], start: Path) -> list[Path]:
    """Return the files that are in no run directory below `start`: a run has a copy of its text."""
    folders = {folder for file in files for folder in file.parents if start in folder.parents}
    runs = set(filter(is_run, folders))
    return [file for file in files if not runs & set(file.parents)]


def _is_pattern(path: str | os.PathLike[str]) -> bool:
    return bool(MAGIC & set(str(path))) and not os.path.lexists(path)


def read_text_of(path: str | os.PathLike[str], field: str = "text") -> str:
    """Return the text of a file, or the documents of several files, or of JSON lines, with U+0003 between them.

    A folder means its .txt, .jsonl and .ndjson files, gzipped or not, and those of its folders; a pattern (`*`, `?`,
    `[...]`, and `**` for folders) the files that match. They are read in the order of their names. Hidden files and
    those in run directories, which are copies, are left out.
    A document of JSON lines is the text in `field` of a line. Empty documents are left out.

    Raises: DataError if a file cannot be read or is not text, or there is none.
    """
    return "".join(stream_text(path, field))


def stream_text(
    path: str | os.PathLike[str], field: str = "text", progress: Callable[[int], None] = lambda size: None
) -> Iterator[str]:
    """Yield what `read_text_of` returns, about a megabyte at a time.

    Calls `progress` with the bytes of the files that are read. Raises: DataError as `read_text_of` does.
    """
    files = files_of(path)
    several = len(files) > 1 or JSON_LINES.search(files[0].name)
    pieces = _join_documents(files, field, progress) if several else _text(files[0], progress)
    gathered, size, empty = [], 0, True
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield "".join(gathered)
            gathered, size, empty = [], 0, False
    if size:
        yield "".join(gathered)
    elif empty:
        raise DataError(f"{truncated(path if several else files[0])} is empty")


def size_of(path: str | os.PathLike[str], gzipped: int = 1) -> int:
    """Return the bytes of the files that `read_text_of` reads, 0 for a pipe; those of a gzipped file `gzipped` times.

    Raises: DataError if there is no such file.
    """
    files = filter(Path.is_file, files_of(path))
    return sum(file.stat().st_size * (gzipped if file.suffix.lower() == ".gz" else 1) for file in files)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path or pattern that means the same in every working directory."""
    path = os.path.expanduser(path)
    if _is_pattern(path) and not os.path.isabs(path):
        return os.path.join(glob.escape(os.getcwd()), path)
    return os.path.abspath(path)


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that `read_text_of` reads, in their order. Raises: DataError if there is none."""
    try:
        start = Path(path).expanduser()
        if _is_pattern(start):
            found = sorted(map(Path, glob.glob(str(start), recursive=True)))
            files = _outside_runs([file for file in found if not file.is_dir()], _fixed_part(start))
            what = "file that matches"
        elif start.is_dir():
            files = sorted(_walk(start))
            what = "file with a name ending in .txt or .jsonl, or these and .gz, in"
        else:
            return [start]
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no home directory, no possible name
        where = getattr(error, "filename", None) or path
        raise DataError(f"cannot read {truncated(where)}: {_reason(error)}") from None
    if not files:
        raise DataError(f"there is no {what} {truncated(path)} (run directories are left out)")
    known = set(files)
    for file in files:
        if not file.is_file():
            raise DataError(f"cannot read {truncated(file)}: it is not a file")
        if (plain := file.with_suffix("")) in known and file.suffix.lower() == ".gz":
            raise DataError(
                f"{truncated(plain)} is there gzipped too; remove one of the two, or their text would count twice"
            )
    return files


def _walk(start: Path) -> Iterator[Path]:
    """Yield the files of documents in a folder and its folders, through links too. Raises: OSError."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, names in os.walk(start, onerror=fail, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        if is_run(Path(folder)):
            folders.clear()
            continue
        folders[:] = [name for name in folders if name[0] != "."]
        kept = [name for name in names if TEXT.search(name) or JSON_LINES.search(name)]
        yield from (Path(folder, name) for name in kept if name[0] != ".")


def _text(file: Path, progress: Callable[[int], None], done: int = 0) -> Iterator[str]:
    """Yield the text of a file, some at a time."""
    with _open(file) as (stream, raw):

        def read() -> Iterator[bytes]:
            while data := stream.read(CHUNK):
                progress(done + _position(raw))
                yield data

        yield from cleaned(read(), truncated(file))


def _join_documents(files: list[Path], field: str, progress: Callable[[int], None]) -> Iterator[str]:
    """Yield the documents of files, each in one piece or more, with U+0003 between them."""
    done, first = 0, True
    for file in files:
        for source, pieces in _documents(file, field, progress, done):
            fresh = True
            for piece in filter(None, pieces):
                if END_OF_TEXT in piece:
                    raise DataError(f"{source} has U+0003, which stands between documents; remove it first")
                if fresh and not first:
                    yield END_OF_TEXT
                fresh = first = False
                yield piece
        done += file.stat().st_size


def _documents(
    file: Path, field: str, progress: Callable[[int], None], done: int
) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the documents of a file in pieces, each with its source for a message."""
    if not JSON_LINES.search(file.name):
        yield truncated(file), _text(file, progress, done)
        return
    with _open(file) as (stream, raw):
        for number, line in enumerate(stream, 1):
            source = f"line {number:,} of {truncated(file)}"
            if line.strip():
                yield source, [_document(line, field, source)]
            if number % 1024 == 0:
                progress(done + _position(raw))


def _position(raw: BufferedIOBase) -> int:
    return raw.tell() if raw.seekable() else 0  # not of a pipe


def _document(line: bytes, field: str, source: str) -> str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise DataError(f"{source} is not JSON") from None
    if not isinstance(fields, dict):
        raise DataError(f"{source} is not a JSON object")
    text = fields.get(field)
    if not isinstance(text, str):
        names = ", ".join(sorted(name for name, value in fields.items() if isinstance(value, str)))
        raise DataError(
            f"{source} has no text in data.field={truncated(field)}; it has text in: {truncated(names or 'none')}"
        )
    if text.isascii() and "\r" not in text and "\0" not in text:
        return text
    try:
        return clean_text(text.encode(), source)
    except UnicodeEncodeError:
        raise DataError(f"{source} has half a surrogate pair, which is no character") from None


@contextmanager
def _open(file: Path) -> Iterator[tuple[BufferedIOBase, BufferedIOBase]]:
    """Open a file, gzipped or not, for reading: its content, and what is on the disk.

    Raises: DataError, also while it is read.
    """
    try:
        with file.open("rb") as raw:
            if file.suffix.lower() != ".gz":
                yield raw, raw
                return
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream, raw
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"cannot read {truncated(file)}: it is not a whole gzip file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {truncated(file)}: {_reason(error)}") from None


def _reason(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def cleaned(chunks: Iterable[bytes], source: str) -> Iterator[str]:
    """Decode UTF-8 bytes, cut anywhere, to text with "\\n" line ends and no byte-order marks at the start.

    Raises: DataError, naming `source`.
    """
    decoder, lines = codecs.getincrementaldecoder("utf-8")(), IncrementalNewlineDecoder(None, translate=True)
    size, characters = 0, 0  # before this chunk
    for data in chain(chunks, [None]):  # None: the end
        try:
            text = decoder.decode(data or b"", final=data is None)
        except UnicodeDecodeError as error:
            byte = size - len(decoder.getstate()[0]) + error.start
            raise DataError(
                f"{source} is not UTF-8 text (byte {byte} is 0x{error.object[error.start]:02x}); convert it to UTF-8 "
                "first"
            ) from None
        text = text if characters else text.lstrip("\ufeff")
        if "\0" in text:
            raise DataError(f"{source} is not text: it has a NUL byte at character {characters + text.index(chr(0))}")
        size, characters = size + len(data or b""), characters + len(text)
        yield lines.decode(text, final=data is None)


def clean_text(data: bytes, source: str) -> str:
    """Decode UTF-8 bytes as `cleaned` does. Raises: DataError, naming `source`."""
    return "".join(cleaned([data], source))


def decode_text(data: bytes, source: str) -> str:
    """Decode a text that is not empty, as `clean_text` does. Raises: DataError, naming `source`."""
    text = clean_text(data, source)
    if not text:
        raise DataError(f"{source} is empty")
    return text
