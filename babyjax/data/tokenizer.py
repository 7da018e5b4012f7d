"""Tokenizers: text to int32 ids and back, vectorized over the whole corpus.

A tokenizer is strict: a character outside its vocabulary raises TokenError. The `char` vocabulary is that of the whole
corpus, validation split included; a prompt may still have an unknown character. `byte` and `bpe` encode every text.
`data/subwords.py` has byte-pair encodings, and reads the tokenizers of other programs.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from babyjax.checks import check_tokens
from babyjax.data.batches import TRAIN_FRACTION
from babyjax.data.documents import END_OF_TEXT
from babyjax.errors import ConfigError, TokenError
from babyjax.files import read_text, user_path
from babyjax.text import truncated

FILE, MAX_BYTES = "tokenizer.json", 1 << 28
BPE_TOKENS, BPE_TEXT = 8192, 1 << 28
Ids = Int[np.ndarray, " L"]


@runtime_checkable
class Tokenizer(Protocol):
    """The protocol of a tokenizer. `byte_lengths[id]` is the UTF-8 length of token `id`.

    `words[id]` is a word for it, without whitespace, in files whose tokens are separated by spaces. `end_of_text` is
    the token that ends documents, None if there is none. `encode_chunks` yields the ids of a text that comes in pieces
    cut anywhere, some at a time: joined they are what `encode` returns for the whole.
    """

    name: ClassVar[str]

    @property
    def vocab_size(self) -> int: ...
    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]: ...
    @property
    def words(self) -> list[str]: ...
    @property
    def end_of_text(self) -> int | None: ...
    def encode(self, text: str) -> Ids: ...
    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]: ...
    def decode(self, ids: ArrayLike) -> str: ...
    def to_json(self) -> str: ...


def checked_ids(ids: ArrayLike, vocab_size: int) -> Ids:
    """Return ids as int64[L]. Raises: TokenError if one is outside the vocabulary."""
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise TokenError(f"the ids of a text must be one-dimensional, got shape {list(ids.shape)}")
    if ids.size:  # NumPy calls an empty list an array of floats
        check_tokens(ids, vocab_size)
    return ids.astype(np.int64)


def visible(character: str) -> str:
    """Return a character, or U+0020 by its code point if it cannot be seen."""
    return character if character.isprintable() and not character.isspace() else f"U+{ord(character):04X}"


def _code_points(text: str) -> np.ndarray:
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _text_of(points: np.ndarray) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character. Ids follow the sorted order of `characters`."""

    name: ClassVar[str] = "char"
    characters: str

    def __post_init__(self):
        points = _code_points(self.characters)
        if not points.size or (np.diff(points.astype(np.int64)) <= 0).any():
            raise TokenError("the characters of a char tokenizer must be a non-empty, sorted string without repetition")

    @classmethod
    def fit(cls, text: str) -> "CharTokenizer":
        """Return the tokenizer of the sorted set of characters of `text`."""
        return cls.fit_chunks([text])

    @classmethod
    def fit_chunks(cls, chunks: Iterable[str]) -> "CharTokenizer":
        """Return the tokenizer of a text that comes in pieces."""
        seen = np.zeros(0x110000, bool)
        for chunk in chunks:
            seen[_code_points(chunk)] = True
        return cls(_text_of(np.flatnonzero(seen)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        return np.array([len(c.encode("utf-8", "surrogatepass")) for c in self.characters])

    @property
    def words(self) -> list[str]:
        """A character is its own word; one that is not visible is written U+0020, by its code point."""
        return [visible(character) for character in self.characters]

    @property
    def end_of_text(self) -> int | None:
        """U+0003, if it is among the characters."""
        return self.characters.index(END_OF_TEXT) if END_OF_TEXT in self.characters else None

    @cached_property
    def _id_of_point(self) -> np.ndarray:
        points = _code_points(self.characters)
        table = np.full(int(points[-1]) + 1, -1, np.int32)
        table[points] = np.arange(len(points))
        return table

    @cached_property
    def _id_of_ascii(self) -> bytes:
        """The id of each byte of ASCII text, 255 for a character that is unknown."""
        ids = self._id_of_point[:128]
        return np.where(ids < 0, 255, ids).astype(np.uint8).tobytes().ljust(256, b"\xff")

    def encode(self, text: str) -> Ids:
        """Encode L characters as int32[L]. Raises: TokenError naming the first unknown character."""
        return self._encode(text, 0)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """Encode the pieces of a text. Raises: TokenError naming the first unknown character."""
        start = 0
        for chunk in chunks:
            yield self._encode(chunk, start)
            start += len(chunk)

    def _encode(self, text: str, start: int) -> Ids:
        if text.isascii():
            ids = np.frombuffer(text.encode("ascii").translate(self._id_of_ascii), np.uint8).astype(np.int32)
            ids[ids == 255] = -1
        else:
            points, table = _code_points(text), self._id_of_point
            ids = table.take(points, mode="clip")
            ids[points >= len(table)] = -1
        if ids.size and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            raise TokenError(
                f"character {text[position]!r} (U+{ord(text[position]):04X}) at position {start + position:,} is not "
                f"among the {self.vocab_size} characters of this vocabulary; data.tokenizer=byte encodes all"
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """Decode L integers to text. Raises: TokenError if one is outside the vocabulary."""
        return _text_of(_code_points(self.characters)[checked_ids(ids, self.vocab_size)])

    def to_json(self) -> str:
        return json.dumps({"type": self.name, "characters": self.characters})


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte: 256 ids, every text encodable."""

    name: ClassVar[str] = "byte"

    @classmethod
    def fit(cls, text: str) -> "ByteTokenizer":
        """Return the tokenizer, the same for every text."""
        return cls()

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        return np.ones(256, np.int64)

    @property
    def words(self) -> list[str]:
        """A byte is written <0x20>, in hexadecimal."""
        return [f"<0x{byte:02X}>" for byte in range(256)]

    @property
    def end_of_text(self) -> int | None:
        """None, since byte 3 may have any meaning."""
        return None

    def encode(self, text: str) -> Ids:
        """Encode `text` as int32[number of UTF-8 bytes]. Raises: TokenError if it has half a surrogate pair.

        Python writes a byte that was no UTF-8 as U+DC80 to U+DCFF; these become that byte again.
        """
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise TokenError(f"character {text[error.start]!r} at position {error.start} has no UTF-8 bytes") from None
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """Encode the pieces of a text. Raises: TokenError if one has a lone surrogate."""
        return map(self.encode, chunks)

    def decode(self, ids: ArrayLike) -> str:
        """Decode L integers to text. Bytes that are not UTF-8 become U+FFFD: a sample may stop inside a character."""
        return checked_ids(ids, self.vocab_size).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"type": self.name})


TOKENIZERS: dict[str, type[CharTokenizer] | type[ByteTokenizer]] = {"char": CharTokenizer, "byte": ByteTokenizer}


def tokenizer_from_json(text: str) -> Tokenizer:
    """Return the tokenizer that `to_json` wrote, or of a `tokenizer.json`. Raises: TokenError if `text` is neither."""
    try:
        fields = json.loads(text)
        if "model" in fields and "type" not in fields:
            from babyjax.data.subwords import SubwordTokenizer  # reads a library

            return SubwordTokenizer.read(text)
        return TOKENIZERS[fields.pop("type")](**fields)
    except TokenError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenError(f"this is not a saved tokenizer ({type(error).__name__}: {str(error)[:60]})") from error


def make_tokenizer(which: str, chunks: Callable[[], Iterable[str]], vocab_size: int | None = None) -> Tokenizer:
    """Return the tokenizer of a text: `char`, `byte`, `bpe`, or that of a `tokenizer.json` or of the folder it is in.

    `chunks` reads the text in pieces, from the start each time. `bpe` learns `vocab_size` tokens from the part that is
    for training, or the first 2**28 characters of it.

    Raises: ConfigError if there is no such file, TokenError if it cannot be used.
    """
    if which == "char":
        return CharTokenizer.fit_chunks(chunks())
    if which == "byte":
        return ByteTokenizer()
    if which == "bpe":
        from babyjax.data.subwords import SubwordTokenizer

        size = int(TRAIN_FRACTION * sum(map(len, chunks())))
        return SubwordTokenizer.fit_chunks(first_characters(chunks(), min(size, BPE_TEXT)), vocab_size or BPE_TOKENS)
    return read_tokenizer(tokenizer_file(which))


def tokenizer_file(which: str) -> Path:
    """Return the `tokenizer.json` at a path, or in the folder there. Raises: ConfigError if there is none."""
    path = user_path(which, ConfigError)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        close = difflib.get_close_matches(which.lower(), ("char", "byte", "bpe"), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"data.tokenizer={truncated(which)} is not char, byte, bpe or the path of a tokenizer.json{hint}"
        )
    return path


def first_characters(chunks: Iterable[str], size: int) -> Iterator[str]:
    """Yield the first `size` characters of a text that comes in pieces."""
    for chunk in chunks:
        if size <= len(chunk):
            yield chunk[:size]
            return
        yield chunk
        size -= len(chunk)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a run or a `tokenizer.json`. Raises: TokenError if the file cannot be used."""
    try:
        return tokenizer_from_json(read_text(path, MAX_BYTES))
    except OSError as error:
        raise TokenError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except ValueError as error:
        raise TokenError(f"{path} cannot be used: {error}") from None
