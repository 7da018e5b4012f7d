"""Text files: one, or the documents of a folder or a pattern; plain text or JSON lines, either gzipped.

Every text is UTF-8. A byte-order mark is dropped and line ends become "\\n", so that the same text saved on another
system is the same.
"""

import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from babyjax.errors import DataError
from babyjax.text import shown

END_OF_TEXT = "\x03"  # U+0003, "end of text": what separates documents
TEXT = re.compile(r"\.txt(\.gz)?$", re.IGNORECASE)
JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)
MAGIC = frozenset("*?[")


def corpus_name(path: str | os.PathLike[str]) -> str:
    """Return the name of the corpus in a file, a folder or the files of a pattern: the file's or the folder's."""
    last = Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user
    if _is_pattern(last):
        last = next(folder for folder in last.parents if not MAGIC & set(str(folder)))
    if last.name in ("", ".."):
        return last.resolve().name or "files"
    if os.path.isdir(last):  # Path.is_dir raises for a name that is too long
        return last.name
    return Path(re.sub(r"\.gz$", "", last.name, flags=re.IGNORECASE)).stem


def _is_pattern(path: str | os.PathLike[str]) -> bool:
    return bool(MAGIC & set(str(path))) and not os.path.lexists(path)


def read_text_of(path: str | os.PathLike[str], field: str = "text") -> str:
    """Return the text of a file, or the documents of several files, or of JSON lines, with U+0003 between them.

    A folder means its .txt, .jsonl and .ndjson files, gzipped or not, and those of its folders; a pattern (`*`, `?`,
    `[...]`, and `**` for folders) the files that match. They are read in the order of their names, without hidden ones.
    A document of JSON lines is the text in `field` of a line. Empty documents are left out.

    Raises: DataError if a file cannot be read or is not text, or there is none.
    """
    files = _files(path)
    if len(files) == 1 and not JSON_LINES.search(files[0].name):
        return _text(files[0])
    documents = []
    for file in files:
        for document, source in _documents(file, field):
            if END_OF_TEXT in document:
                raise DataError(f"{source} has U+0003, which stands between documents; remove it first")
            documents.append(document)
    if not any(documents):
        raise DataError(f"{shown(path)} is empty")
    return END_OF_TEXT.join(filter(None, documents))


def _files(path: str | os.PathLike[str]) -> list[Path]:
    try:
        start = Path(path).expanduser()
        if _is_pattern(start):
            files = [file for file in sorted(map(Path, glob.glob(str(start), recursive=True))) if not file.is_dir()]
            what = "file that matches"
        elif start.is_dir():
            files = sorted(_walk(start))
            what = "file with a name ending in .txt or .jsonl, or these and .gz, in"
        else:
            return [start]
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no home directory, no possible name
        where = getattr(error, "filename", None) or path
        raise DataError(f"cannot read {shown(where)}: {_reason(error)}") from None
    if not files:
        raise DataError(f"there is no {what} {shown(path)}")
    known = set(files)
    for file in files:
        if not file.is_file():
            raise DataError(f"cannot read {shown(file)}: it is not a file")
        if (plain := file.with_suffix("")) in known and file.suffix.lower() == ".gz":
            raise DataError(
                f"{shown(plain)} is there gzipped too; remove one of the two, or their text would count twice"
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
        folders[:] = [name for name in folders if name[0] != "."]
        kept = [name for name in names if TEXT.search(name) or JSON_LINES.search(name)]
        yield from (Path(folder, name) for name in kept if name[0] != ".")


def _text(file: Path) -> str:
    with _open(file) as stream:
        data = stream.read(1 << 20)
        if b"\0" not in data:  # /dev/zero never ends
            data += stream.read()
    return decode_text(data, shown(file))


def _documents(file: Path, field: str) -> Iterator[tuple[str, str]]:
    """Yield the documents of a file, each with its source for a message."""
    if not JSON_LINES.search(file.name):
        with _open(file) as stream:
            data = stream.read()
        yield clean_text(data, shown(file)), shown(file)
        return
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            source = f"line {number:,} of {shown(file)}"
            if line.strip():
                yield _document(line, field, source), source


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
        raise DataError(f"{source} has no text in data.field={shown(field)}; it has text in: {shown(names or 'none')}")
    try:
        return clean_text(text.encode(), source)
    except UnicodeEncodeError:
        raise DataError(f"{source} has half a surrogate pair, which is no character") from None


@contextmanager
def _open(file: Path) -> Iterator[BufferedIOBase]:
    """Open a file, gzipped or not, for reading. Raises: DataError, also while it is read."""
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"cannot read {shown(file)}: it is not a whole gzip file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {shown(file)}: {_reason(error)}") from None


def _reason(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def clean_text(data: bytes, source: str) -> str:
    """Decode UTF-8 bytes to text with "\\n" line ends and no byte-order mark. Raises: DataError, naming `source`."""
    try:
        text = data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); convert it to UTF-8 first"
        ) from None
    if "\0" in text:
        raise DataError(f"{source} is not text: it has a NUL byte at character {text.index(chr(0))}")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def decode_text(data: bytes, source: str) -> str:
    """Decode a text that is not empty, as `clean_text` does. Raises: DataError, naming `source`."""
    text = clean_text(data, source)
    if not text:
        raise DataError(f"{source} is empty")
    return text
