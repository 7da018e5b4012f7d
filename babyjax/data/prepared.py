"""Corpora on disk: a text of any length as a file of token ids, prepared once and read where it is needed.

A prepared corpus is a folder with tokens.bin (the ids, little-endian, in the smallest unsigned type), tokenizer.json
and corpus.json (a `Description`). It appears under its name when it is complete.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Integer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from babyjax.data.batches import bytes_of, chunks_of, split_tokens
from babyjax.data.tokenizer import FILE, Tokenizer, tokenizer_from_json
from babyjax.data.tokenizer import MAX_BYTES as TOKENIZER_BYTES
from babyjax.errors import DataError
from babyjax.files import read_text, user_path

DESCRIPTION, TOKENS = "corpus.json", "tokens.bin"
AGAIN = "remove that folder and prepare the text again"
MAX_BYTES = 1 << 20

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


def is_prepared(path: str | Path) -> bool:
    """Return whether there is a prepared corpus at a path."""
    folder = user_path(path, DataError)
    return all(os.path.isfile(folder / name) for name in (DESCRIPTION, TOKENS))


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
