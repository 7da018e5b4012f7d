"""Tokenizers: text to int32 ids and back, vectorised over the whole corpus.

A tokenizer is strict: text outside its vocabulary raises `TokenError` and names the character. The
`char` vocabulary is taken from the whole corpus, so validation text is always inside it; a prompt may
not be. The `byte` tokenizer knows every text.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Int

from babyjax.checks import check_tokens
from babyjax.errors import TokenError

Ids = Int[np.ndarray, " L"]


class Tokenizer(Protocol):
    """What every tokenizer offers; `byte_lengths[id]` is the UTF-8 length of token `id`."""

    name: ClassVar[str]

    @property
    def vocab_size(self) -> int: ...
    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]: ...
    def encode(self, text: str) -> Ids: ...
    def decode(self, ids: Ids) -> str: ...
    def to_json(self) -> str: ...


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; ids follow the sorted order of `characters`, as in the seed's script."""

    name: ClassVar[str] = "char"
    characters: str

    def __post_init__(self):
        points = _code_points(self.characters)
        if not points.size or (np.diff(points.astype(np.int64)) <= 0).any():
            raise TokenError("a char vocabulary is a non-empty, sorted string of distinct characters")

    @classmethod
    def fit(cls, text: str) -> "CharTokenizer":
        """The sorted set of the characters of `text`."""
        seen = np.zeros(0x110000, bool)
        seen[_code_points(text)] = True
        points = np.flatnonzero(seen).astype("<u4")
        return cls(points.tobytes().decode("utf-32-le", "surrogatepass"))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @cached_property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        return np.array([len(c.encode("utf-8", "surrogatepass")) for c in self.characters])

    @cached_property
    def _id_of_point(self) -> np.ndarray:
        points = _code_points(self.characters)
        table = np.full(int(points[-1]) + 1, -1, np.int32)
        table[points] = np.arange(len(points))
        return table

    def encode(self, text: str) -> Ids:
        """`text` of L characters to int32[L]. Raises `TokenError` naming the first unknown character."""
        points, table = _code_points(text), self._id_of_point
        ids = table.take(points, mode="clip")
        if points.size and (ids.min() < 0 or points.max() >= len(table)):
            unknown = (ids < 0) | (points >= len(table))
            position = int(np.argmax(unknown))
            raise TokenError(
                f"character {text[position]!r} (U+{ord(text[position]):04X}) at position {position} is not among the "
                f"{self.vocab_size} characters of this vocabulary; data.tokenizer=byte trains a model that knows all"
            )
        return ids

    def decode(self, ids: Ids) -> str:
        """int[L] to text. Raises `TokenError` for ids outside the vocabulary."""
        check_tokens(ids, self.vocab_size)
        return _code_points(self.characters)[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def to_json(self) -> str:
        return json.dumps({"type": self.name, "characters": self.characters})


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte: 256 ids, every text encodable."""

    name: ClassVar[str] = "byte"

    @classmethod
    def fit(cls, text: str) -> "ByteTokenizer":
        """The byte vocabulary is the same for every text."""
        return cls()

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        return np.ones(256, np.int64)

    def encode(self, text: str) -> Ids:
        """`text` to int32[number of UTF-8 bytes]."""
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int32)

    def decode(self, ids: Ids) -> str:
        """int[L] to text; bytes that are not UTF-8 (a sample may stop inside a character) become U+FFFD."""
        check_tokens(ids, self.vocab_size)
        return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"type": self.name})


TOKENIZERS: dict[str, type[CharTokenizer] | type[ByteTokenizer]] = {"char": CharTokenizer, "byte": ByteTokenizer}


def tokenizer_from_json(text: str) -> CharTokenizer | ByteTokenizer:
    """The inverse of `to_json`. Raises `TokenError` for anything else."""
    try:
        fields = json.loads(text)
        return TOKENIZERS[fields.pop("type")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenError(f"this is not a saved tokenizer ({type(error).__name__}: {error})") from error
