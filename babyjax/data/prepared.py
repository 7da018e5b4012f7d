"""Corpora on disk: a text of any length as a file of token ids, prepared once and read where it is needed.

A prepared corpus is a folder with tokens.bin (the ids, little-endian, in the smallest unsigned type), tokenizer.json
and corpus.json (a `Description`). It appears under its name when it is complete.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Integer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from babyjax.data.batches import bytes_of, chunks_of, split_tokens
from babyjax.data.corpus import Corpus, read_corpus
from babyjax.data.documents import END_OF_TEXT, absolute, corpus_name, files_of, size_of, stream_text
from babyjax.data.tokenizer import (
    BPE_TOKENS,
    FILE,
    Tokenizer,
    make_tokenizer,
    read_tokenizer,
    tokenizer_file,
    tokenizer_from_json,
)
from babyjax.data.tokenizer import MAX_BYTES as TOKENIZER_BYTES
from babyjax.errors import DataError
from babyjax.files import (
    LOCK,
    is_temporary,
    new_folder,
    open_appending,
    read_text,
    replace_file,
    take_lock,
    user_cache,
    user_path,
)
from babyjax.text import truncated

DESCRIPTION, TOKENS = "corpus.json", "tokens.bin"
AGAIN = "remove that folder and prepare the text again"
MAX_BYTES = 1 << 20
# Files of this many bytes or more are prepared. Smaller ones are read into memory, 10 to 20 bytes for each of theirs.
# Gzipped files have about four bytes of text for each of theirs.
PREPARED_FROM, GZIPPED = 1 << 26, 4

Progress = Callable[[str, float], None]  # what is done, and the share of it


def silent(what: str, share: float) -> None:
    """Report no progress."""


Size = Annotated[int, Field(ge=0)]


class Description(BaseModel):
    """What is in a prepared corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    name: str
    sha256: str  # of the text as UTF-8
    characters: Size
    bytes: Size
    documents: Size
    tokenizer: str  # as data.tokenizer= has it, or "file"
    vocab_size: int | None  # of data.tokenizer=bpe
    tokenizer_sha256: str
    dtype: Literal["uint8", "uint16", "uint32"]
    tokens: Annotated[int, Field(ge=1)]
    tokens_sha256: str
    splits: dict[Literal["train", "val"], list[int]]  # where they begin and end, in tokens
    end_of_text: int | None  # the token between documents


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus of which only the tokens are read, from `folder`. `path` is what it was prepared from."""

    path: str
    description: Description
    tokenizer: Tokenizer
    tokens: Integer[np.ndarray, " N"]
    folder: Path
    part: str = ""  # "-train" for the training split as a corpus of its own

    entropy_rate = None  # of its source, which is not known

    @property
    def name(self) -> str:
        return self.description.name + self.part

    @property
    def sha256(self) -> str:
        """sha256 of the text as UTF-8, or another for a part of it."""
        whole = self.description.sha256
        return hashlib.sha256((whole + self.part).encode()).hexdigest() if self.part else whole

    @property
    def characters(self) -> int:
        """Characters of the text, the whole of it."""
        return self.description.characters

    @property
    def bytes(self) -> int:
        """Bytes of the text as UTF-8, counted when it was read."""
        return bytes_of(self.tokens, self.tokenizer.byte_lengths) if self.part else self.description.bytes

    def encode(self, tokenizer: Tokenizer) -> Integer[np.ndarray, " N"]:
        """Return the tokens. Raises: DataError if they are not those of `tokenizer`."""
        if tokenizer != self.tokenizer:
            raise DataError(f"{self.path} was prepared with another tokenizer; give the text itself")
        return self.tokens

    def check(self) -> None:
        """Raises: DataError if the tokens are not those that were written."""
        digest = hashlib.sha256()
        for chunk in chunks_of(open_prepared(self.folder).tokens):
            digest.update(chunk.tobytes())
        if digest.hexdigest() != self.description.tokens_sha256:
            raise DataError(f"{self.folder / TOKENS} was damaged or changed; remove {self.folder} and prepare it again")

    def training(self) -> "PreparedCorpus":
        """Return the training split as a corpus of its own."""
        return replace(self, tokens=split_tokens(self.tokens).train, part="-train")


def load_file(
    path: str,
    field: str = "text",
    tokenizer: str = "char",
    vocab_size: int | None = None,
    progress: Progress = silent,
) -> Corpus | PreparedCorpus:
    """Return the corpus in a prepared folder, or in text files: from the user's cache if it is large or there already.

    The options are those of `data.`. Raises: DataError if it cannot be read, or was prepared with other options.
    """
    if is_prepared(path):
        return _with_options(open_prepared(path), tokenizer, vocab_size)
    size = size_of(path, GZIPPED)
    folder = cache_folder(path, field, tokenizer, vocab_size) if size else None  # 0 for a pipe
    if size < PREPARED_FROM and not (folder and (folder / DESCRIPTION).is_file()):
        return read_corpus(path, field)
    if folder is None:
        raise DataError(
            f"{truncated(path)} is large and there is no cache folder for what is prepared from it; "
            "use babyjax prepare data.path=... out=FOLDER and then data.path=FOLDER"
        )
    return prepare_once(folder, path, field, tokenizer, vocab_size, progress)


def is_prepared(path: str | Path) -> bool:
    """Return whether there is a prepared corpus at a path."""
    folder = user_path(path, DataError)
    return all(os.path.isfile(folder / name) for name in (DESCRIPTION, TOKENS))


def cache_folder(path: str, field: str, tokenizer: str, vocab_size: int | None) -> Path | None:
    """Return where the user's cache has what is prepared from these files, as they are now, with these options.

    Raises: DataError if there are no such files.
    """
    cache = user_cache()
    if cache is None:
        return None
    try:
        files = [
            (file.name, str(file.resolve()), (found := file.stat()).st_size, found.st_mtime_ns)
            for file in files_of(path)
        ]
    except OSError as error:
        raise DataError(f"cannot read {truncated(path)}: {error.strerror}") from None
    choice = _choice(tokenizer, vocab_size)
    content = read_tokenizer(tokenizer_file(tokenizer)).to_json() if choice[0] == "file" else ""
    key = hashlib.sha256(json.dumps([1, files, field, choice, content]).encode()).hexdigest()[:16]
    return cache / "corpora" / key / corpus_name(path)


def _choice(tokenizer: str, vocab_size: int | None) -> tuple[str, int | None]:
    """Return the options of a tokenizer as a `Description` has them."""
    if tokenizer == "bpe":
        return tokenizer, vocab_size or BPE_TOKENS
    return (tokenizer if tokenizer in ("char", "byte") else "file"), None


def prepare_once(
    folder: Path, path: str, field: str, tokenizer: str, vocab_size: int | None, progress: Progress
) -> PreparedCorpus:
    """Return the corpus in a folder of the cache, prepared first if it is not there, or damaged. Raises: DataError."""
    with suppress(DataError):
        return replace(open_prepared(folder), path=absolute(path))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_appending(folder.parent / LOCK) as lock:
            while not take_lock(lock):
                progress("waiting for another process that reads this text", 0.0)
                time.sleep(0.2)
            with suppress(DataError):  # it is there now
                return replace(open_prepared(folder), path=absolute(path))
            for left in folder.parent.iterdir():
                if left == folder or is_temporary(left):  # damaged, or left by a process that was killed
                    shutil.rmtree(left)
            return prepare_corpus(folder, path, field, tokenizer, vocab_size, progress)
    except OSError as error:
        raise DataError(f"cannot write in {folder.parent}: {error.strerror or error}") from None


def prepare_corpus(
    folder: Path,
    path: str,
    field: str = "text",
    tokenizer: str = "char",
    vocab_size: int | None = None,
    progress: Progress = silent,
) -> PreparedCorpus:
    """Encode a text of any length into a new folder, about a megabyte in memory at a time.

    Raises: DataError if there is anything in `folder`, it cannot be written or the text cannot be read, TokenError if
    that cannot be encoded. Nothing is left in `folder` then.
    """
    if is_prepared(path):
        raise DataError(f"{truncated(path)} is a prepared corpus already, to train on with data.path=")
    total, name = size_of(path), corpus_name(path)
    if not total:
        raise DataError(f"{truncated(path)} is empty or cannot be read twice, as a pipe; save the text to a file first")

    def read(what: str) -> Iterator[str]:
        return stream_text(path, field, lambda size: progress(f"{what} {name}", size / total))

    found = make_tokenizer(tokenizer, lambda: read("reading"), vocab_size)
    dtype: Any = next(kind for kind in ("uint8", "uint16", "uint32") if found.vocab_size - 1 <= np.iinfo(kind).max)
    text, tokens, digest = _Passing(), 0, hashlib.sha256()
    try:
        with new_folder(folder) as work:
            with (work / TOKENS).open("wb") as file:
                for ids in found.encode_chunks(text.through(read("encoding"))):
                    data = ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
                    file.write(data)
                    digest.update(data)
                    tokens += len(ids)
            train = len(split_tokens(np.broadcast_to(0, tokens)).train)
            content, (kind, learned) = found.to_json(), _choice(tokenizer, vocab_size)
            description = Description(
                name=name,
                sha256=text.digest.hexdigest(),
                characters=text.characters,
                bytes=text.bytes,
                documents=text.documents,
                tokenizer=kind,
                vocab_size=learned,
                tokenizer_sha256=hashlib.sha256(content.encode()).hexdigest(),
                dtype=dtype,
                tokens=tokens,
                tokens_sha256=digest.hexdigest(),
                splits={"train": [0, train], "val": [train, tokens]},
                end_of_text=found.end_of_text,
            )
            replace_file(work / FILE, content)
            replace_file(work / DESCRIPTION, description.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from None
    return replace(open_prepared(folder), path=absolute(path))


class _Passing:
    """Counts a text and takes its sha256 as it passes."""

    def __init__(self):
        self.digest, self.characters, self.bytes, self.documents = hashlib.sha256(), 0, 0, 1

    def through(self, chunks: Iterable[str]) -> Iterator[str]:
        for chunk in chunks:
            data = chunk.encode()
            self.digest.update(data)
            self.characters += len(chunk)
            self.bytes += len(data)
            self.documents += chunk.count(END_OF_TEXT)
            yield chunk


def open_prepared(path: str | Path) -> PreparedCorpus:
    """Open a prepared corpus; its tokens are read when they are used.

    Raises: DataError if it is damaged, incomplete or of another version.
    """
    folder = user_path(path, DataError)
    try:
        description = Description.model_validate_json(read_text(folder / DESCRIPTION, MAX_BYTES))
        content = read_text(folder / FILE, TOKENIZER_BYTES)
        size = (folder / TOKENS).stat().st_size
    except (OSError, ValueError) as error:
        reason = "it has other fields" if isinstance(error, ValidationError) else getattr(error, "strerror", None)
        raise DataError(
            f"{folder} is not a corpus that this version has prepared ({reason or error}); {AGAIN}"
        ) from None
    if hashlib.sha256(content.encode()).hexdigest() != description.tokenizer_sha256:
        raise DataError(f"{folder / FILE} was changed; {AGAIN}")
    dtype = np.dtype(description.dtype).newbyteorder("<")
    if size != description.tokens * dtype.itemsize:
        raise DataError(
            f"{folder / TOKENS} has {size:,} bytes, but {description.tokens:,} tokens of {description.dtype} are "
            f"{description.tokens * dtype.itemsize:,}; {AGAIN}"
        )
    try:
        tokens = np.memmap(folder / TOKENS, dtype, "r")
    except OSError as error:
        raise DataError(f"cannot read {folder / TOKENS}: {error.strerror}") from None
    return PreparedCorpus(str(folder), description, tokenizer_from_json(content), tokens, folder)


def _with_options(corpus: PreparedCorpus, tokenizer: str, vocab_size: int | None) -> PreparedCorpus:
    """Raises: DataError if a corpus was prepared with another tokenizer than that of the options."""
    was, choice = corpus.description, _choice(tokenizer, vocab_size)
    if choice[0] == "file":
        same = read_tokenizer(tokenizer_file(tokenizer)) == corpus.tokenizer
    else:
        same = (was.tokenizer, was.vocab_size) == choice
    if not same:
        size = f" data.vocab_size={was.vocab_size}" if was.vocab_size else ""
        which = str(Path(corpus.path, FILE)) if was.tokenizer == "file" else was.tokenizer
        raise DataError(f"{corpus.path} was prepared with other options; give data.tokenizer={which}{size}")
    return corpus
