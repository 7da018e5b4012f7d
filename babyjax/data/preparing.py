"""Preparing corpora: a text of any length is encoded once, into the user's cache or a folder."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from babyjax.data.batches import split_tokens
from babyjax.data.corpus import Corpus, read_corpus
from babyjax.data.documents import END_OF_TEXT, absolute, corpus_name, files_of, size_of, stream_text
from babyjax.data.prepared import DESCRIPTION, TOKENS, Description, PreparedCorpus, is_prepared, open_prepared
from babyjax.data.tokenizer import BPE_TOKENS, FILE, make_tokenizer, read_tokenizer, tokenizer_file
from babyjax.errors import DataError
from babyjax.files import LOCK, is_temporary, new_folder, open_appending, replace_file, take_lock, user_cache
from babyjax.progress import Progress, silent
from babyjax.text import truncated

# Files of this many bytes or more are prepared. Smaller ones are read into memory, 10 to 20 bytes for each of theirs.
# Gzipped files have about four bytes of text for each of theirs.
PREPARED_FROM, GZIPPED = 1 << 26, 4


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


def refuse_prepared(path: str) -> None:
    """Raises: DataError if there is a prepared corpus at a path, and so nothing to do."""
    if is_prepared(path):
        raise DataError(f"{truncated(path)} is a prepared corpus already, to train on with data.path=")


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
    folder: str | Path,
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
    refuse_prepared(path)
    folder, total, name = Path(folder), size_of(path), corpus_name(path)
    if not os.path.exists(os.path.expanduser(path)) and not total:
        raise DataError(f"cannot read {truncated(path)}: No such file or directory")
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
