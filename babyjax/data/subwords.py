"""Byte-pair encodings and tokenizers of other programs, by the Hugging Face `tokenizers` library, and ours as one."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple
from unicodedata import category

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from babyjax.data.documents import END_OF_TEXT
from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, Ids, Tokenizer, checked_ids, visible
from babyjax.errors import BabyjaxError, TokenError
from babyjax.text import truncated

MAX_TOKENS = 1 << 24
# A text is encoded in pieces of about this many characters, this many at a time. The tokens of this many words are
# kept: looking them up is faster than encoding every word again.
GROUP, GROUPS, MAX_WORDS = 2000, 500, 1 << 20
# Letters, digits and punctuation whose kind no version of Unicode has changed, and the whitespace among them.
WESTERN = (*range(0x250), *range(0x2010, 0x2028), 0x20AC)
SPACES = "\t\n\v\f\r \x85\xa0"


@contextmanager
def _library(failure: str) -> Iterator[None]:
    """Raise what goes wrong in the `tokenizers` library as a TokenError. A panic of it is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenError(f"the tokenizers library {failure}: {truncated(str(error))}") from None


def _import() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise BabyjaxError(
            "this tokenizer needs the extra hf: pip install 'babyjax[hf]', or -e '.[hf]' in a checkout"
        ) from None
    return tokenizers


@dataclass(frozen=True)
class SubwordTokenizer:
    """The tokenizer of a `tokenizer.json`, such as a byte-pair encoding. `content` is the text of that file."""

    name: ClassVar[str] = "subword"
    content: str

    @classmethod
    def read(cls, content: str) -> "SubwordTokenizer":
        """Return the tokenizer of a file's text. Raises: TokenError if it cannot be used."""
        tokenizer = cls(content)
        if not tokenizer.vocab_size:
            raise TokenError("the tokenizer has no token")
        return tokenizer

    @classmethod
    def fit(cls, text: str, vocab_size: int) -> "SubwordTokenizer":
        """Learn a byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) of `vocab_size` tokens.

        Every byte is a token, so it encodes every text, and token 0 ends a document. It has fewer tokens if no pair is
        left that occurs twice.
        """
        return cls.fit_chunks([text], vocab_size)

    @classmethod
    def fit_chunks(cls, chunks: Iterable[str], vocab_size: int) -> "SubwordTokenizer":
        """Learn a byte-level byte-pair encoding from a text that comes in pieces."""
        tokenizers = _import()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=_byte_letters(),
            show_progress=False,
        )
        with _library("cannot learn from this text"):
            tokenizer.train_from_iterator(
                chain.from_iterable(group.split(END_OF_TEXT) for group in _groups(chunks, _Rule.of({END_OF_TEXT}).cut)),
                trainer,
            )
        return cls(tokenizer.to_str())

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizers = _import()
        with _library("does not accept this tokenizer"):
            tokenizer = tokenizers.Tokenizer.from_str(self.content)
            tokenizer.no_truncation()
            tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _texts(self) -> list[str | None]:
        """The text of every id as the file has it, None for an id that is not used."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        last = max(ids.values(), default=-1)
        if last >= MAX_TOKENS:
            raise TokenError(
                f"the tokenizer has a token of number {last:,}; more than {MAX_TOKENS:,} are not supported"
            )
        texts: list[str | None] = [None] * (last + 1)
        for text, index in ids.items():
            texts[index] = text
        return texts

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        return self._byte_lengths

    @cached_property
    def _byte_lengths(self) -> Int[np.ndarray, " V"]:
        literal = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        decoder = json.dumps(json.loads(self.content).get("decoder"))

        def length(text: str | None) -> int:
            if text is None:
                return 0
            if text not in literal and '"ByteLevel"' in decoder:
                return len(text)  # one letter for each byte
            if text not in literal and '"ByteFallback"' in decoder and len(text) == 6 and text.startswith("<0x"):
                return 1
            if text not in literal and "\\u2581" in decoder:
                text = text.replace("\u2581", " ")
            return len(text.encode("utf-8", "surrogatepass"))

        return np.array([length(text) for text in self._texts])

    @property
    def words(self) -> list[str]:
        """The text of a token with its number, since two tokens may look the same."""
        return [
            f"{index}:{'' if text is None else ''.join(map(visible, text))}" for index, text in enumerate(self._texts)
        ]

    @property
    def end_of_text(self) -> int | None:
        """The special token U+0003, if there is one."""
        return self._texts.index(END_OF_TEXT) if END_OF_TEXT in self._texts else None

    @cached_property
    def _rule(self) -> "_Rule | None":
        """How a text falls into words that are encoded one by one; None if that is another rule than GPT-2's."""
        content = json.loads(self.content)
        rule = {"use_regex": True, **(content.get("pre_tokenizer") or {})}
        added = self._tokenizer.get_added_tokens_decoder().values()
        if (
            content.get("normalizer") is not None
            or (rule.get("type"), rule.get("add_prefix_space"), rule["use_regex"]) != ("ByteLevel", False, True)
            or any(each.lstrip or each.rstrip or each.single_word or re.search(r"\s", each.content) for each in added)
        ):
            return None
        return _Rule.of({token.content for token in added})

    def encode(self, text: str) -> Ids:
        """Encode `text` without adding special tokens.

        Raises: TokenError if the tokenizer drops or changes a part of it, or miscounts its bytes.
        """
        return np.concatenate([np.empty(0, np.int32), *self.encode_chunks([text])])

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """Encode a text that comes in pieces, or the whole at once if it cannot be cut. Raises: as `encode` does."""
        if (rule := self._rule) is None:
            yield self._encode_all(["".join(chunks)])[0]
            return
        known: dict[str, list[int]] = {}
        groups = _groups(chunks, rule.cut)
        while batch := list(islice(groups, GROUPS)):
            words = [rule.words_of(group) for group in batch]
            new = list(set(chain.from_iterable(filter(None, words))).difference(known))
            known |= zip(new, (ids.tolist() for ids in self._encode_all(new)), strict=True)
            others = iter(self._encode_all([group for group, each in zip(batch, words, strict=True) if each is None]))
            for each in words:
                ids = next(others) if each is None else chain.from_iterable(map(known.__getitem__, each))
                yield np.fromiter(ids, np.int32)
            if len(known) > MAX_WORDS:
                known.clear()

    def _encode_all(self, texts: list[str]) -> list[Ids]:
        """Encode texts one by one. Raises: as `encode` does."""
        with _library("cannot encode this text"):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            found = [np.array(encoding.ids, np.int32) for encoding in encodings]
        for ids, text in zip(found, texts, strict=True):
            self._check(ids, text)
        return found

    def _check(self, ids: Ids, text: str) -> None:
        """Raises: TokenError if `ids` are not `text`."""
        if (back := self.decode(ids)) != text:
            place = next(
                (i for i, (ours, theirs) in enumerate(zip(text, back, strict=False)) if ours != theirs), len(back)
            )
            near = text[max(0, place - 20) : place + 20]
            raise TokenError(f"the tokenizer changes {text[place : place + 1]!r} in this text, near {near!r}")
        counted, size = int(self.byte_lengths[ids].sum()), len(text.encode())
        if counted - size not in (0, 1):  # one more is a space that some put before a text and drop again
            raise TokenError(
                f"the tokens of this text have {counted:,} bytes by the tokenizer's file, but the text has {size:,}: "
                "bits per byte would be wrong"
            )

    def decode(self, ids: ArrayLike) -> str:
        """Decode L integers to text. Raises: TokenError if one is outside the vocabulary."""
        tokenizer, checked = self._tokenizer, checked_ids(ids, self.vocab_size).tolist()
        with _library("cannot decode these tokens"):
            return tokenizer.decode(checked, skip_special_tokens=False)

    def to_json(self) -> str:
        return self.content


class _Rule(NamedTuple):
    """GPT-2's rule for words (Radford et al. 2019), which are encoded one by one.

    `words` has it for characters of Western languages, `foreign` is any other. No word goes over a match of `cut`.
    """

    cut: re.Pattern[str]
    words: re.Pattern[str]
    foreign: re.Pattern[str]

    @classmethod
    def of(cls, added: set[str]) -> "_Rule":
        """Return the rule of a tokenizer with added tokens, which no word goes into."""
        kinds = {kind: "".join(chr(point) for point in WESTERN if category(chr(point))[0] == kind) for kind in "LN"}
        end = re.escape(END_OF_TEXT) if END_OF_TEXT in added else ""
        space, letters, numbers = (re.escape(each) for each in (SPACES, kinds["L"], kinds["N"]))
        words = (
            *([end] * bool(end) + ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]),
            *(f" ?[{letters}]+", f" ?[{numbers}]+", f" ?[^{space}{letters}{numbers}{end}]+"),
            *(f"[{space}]+(?![^{space}{end}])", f"[{space}]+"),
        )
        western = re.escape("".join(map(chr, WESTERN)))
        foreign = [f"[^{western}]", *map(re.escape, added - {END_OF_TEXT})]
        cut = r"(?<=\S)[ \n\u3000]"
        return cls(*(re.compile("|".join(each)) for each in ([cut, end] if end else [cut], words, foreign)))

    def words_of(self, text: str) -> list[str] | None:
        """Return the words of a text; None if only the library knows."""
        return None if self.foreign.search(text) else self.words.findall(text)


def _groups(chunks: Iterable[str], cut: re.Pattern[str]) -> Iterator[str]:
    """Yield a text that comes in pieces, cut before the first match of `cut` after `GROUP` characters."""
    rest = ""
    for chunk in chunks:
        text, start = rest + chunk, 0
        seen = len(rest)  # no match before it
        while found := cut.search(text, max(start + GROUP, seen)):
            yield text[start : found.start()]
            start = found.start()
        rest = text[start:]
    if rest:
        yield rest


def _byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte (Radford et al. 2019): itself if visible."""
    kept = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the `tokenizer.json` of a tokenizer for the `tokenizers` library.

    Characters become a WordLevel model without an unknown token, so that an unknown character raises as ours does.
    Bytes become a byte-pair encoding without merges.
    """
    if isinstance(tokenizer, CharTokenizer):
        model = {
            "type": "WordLevel",
            "vocab": {character: index for index, character in enumerate(tokenizer.characters)},
            "unk_token": "",
        }
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        content = _content(model, split, {"type": "Fuse"})
    elif isinstance(tokenizer, ByteTokenizer):
        letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        model = {"type": "BPE", "vocab": {letter: byte for byte, letter in enumerate(_byte_letters())}, "merges": []}
        content = _content(model, letters, letters)
    else:
        return tokenizer.to_json()
    return json.dumps(content, ensure_ascii=False) + "\n"


def _content(model: dict[str, Any], pre_tokenizer: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    unused = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return {
        "version": "1.0",
        "added_tokens": [],
        **unused,
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
        "model": model,
    }
