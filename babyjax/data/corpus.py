"""Corpora: the texts to train on. The same text saved on another system is the same corpus, with the same sha256."""

import contextlib
import hashlib
import http.client
import inspect
import os
import unicodedata
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from babyjax.data.documents import corpus_name, decode_text, read_text_of
from babyjax.data.markov import MarkovSource
from babyjax.data.tokenizer import Tokenizer
from babyjax.errors import DataError
from babyjax.files import replace_file, user_cache

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Corpus:
    """A named text in memory. `entropy_rate` is that of its source in nats per character, if it is known."""

    name: str
    text: str
    entropy_rate: float | None = None

    path = None  # a run keeps a copy of the text

    @cached_property
    def sha256(self) -> str:
        """sha256 of the text as UTF-8, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def characters(self) -> int:
        return len(self.text)

    @cached_property
    def bytes(self) -> int:
        """Bytes of the text as UTF-8."""
        return len(self.text.encode())

    def encode(self, tokenizer: Tokenizer) -> Int[np.ndarray, " N"]:
        """Return the tokens of the text. Raises: TokenError if it cannot be encoded."""
        return tokenizer.encode(self.text)


def read_corpus(path: str | os.PathLike[str], field: str = "text") -> Corpus:
    """Read the corpus in a file, a folder or the files of a pattern, as `read_text_of` does. Raises: DataError."""
    return Corpus(corpus_name(path), read_text_of(path, field))


def _pydocs() -> Corpus:
    """Python's own language reference (`pydoc_data.topics`) as ASCII. It differs between Python versions."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python has no pydoc_data.topics; train on your own text with data.path=FILE") from None
    text = "\n".join(topics[name] for name in sorted(topics))
    text = text.translate(str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "ß": "ss"}))
    return Corpus("pydocs", unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode())


def _shakespeare(url: str = SHAKESPEARE_URL) -> Corpus:
    """Karpathy's tinyshakespeare: downloaded once, checked, and kept in the user's cache folder."""
    folder = user_cache()
    cached = folder / "tinyshakespeare.txt" if folder else None
    with contextlib.suppress(OSError):
        if cached and hashlib.sha256(data := cached.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
            return Corpus("shakespeare", decode_text(data, str(cached)))
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"cannot download {url} ({getattr(error, 'reason', error)}); "
            "download it yourself and give data.path=FILE, or use data=pydocs, which needs no network"
        ) from None
    if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
        raise DataError(f"{url} did not send tinyshakespeare: the sha256 differs")
    text = decode_text(data, url)
    if cached:
        with contextlib.suppress(OSError):  # the cache is a convenience
            cached.parent.mkdir(parents=True, exist_ok=True)
            replace_file(cached, text)
    return Corpus("shakespeare", text)


def _synthetic(states: int = 26, length: int = 1_000_000, seed: int = 0, order: int = 1) -> Corpus:
    """Draw from a seeded `MarkovSource`, in which a state depends on the last `order` states."""
    if states < 1 or length < 1 or order < 1:
        raise DataError(f"states, length and order must be at least 1, got {states}, {length} and {order}")
    if seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    source = MarkovSource.random(rng, states, order)
    alphabet = np.array([ord("a") + i if states <= 26 else 0x4E00 + i for i in range(states)], "<u4")
    text = alphabet[source.draw(rng, length)].tobytes().decode("utf-32-le")
    return Corpus("synthetic", text, source.entropy_rate)


CORPORA: dict[str, Callable[..., Corpus]] = {
    "pydocs": _pydocs,
    "shakespeare": _shakespeare,
    "synthetic": _synthetic,
}


def load_corpus(name: str = "pydocs", **options) -> Corpus:
    """Load a corpus by name: `pydocs`, `shakespeare`, or `synthetic` with `states`, `length`, `seed` and `order`.

    For a text file see `read_corpus`. Raises: DataError if the name is unknown or the text cannot be loaded.
    """
    if name not in CORPORA:
        raise DataError(
            f"unknown corpus {name!r}; choose from {', '.join(CORPORA)}, or read_corpus(path) for a text file"
        )
    if odd := sorted(options.keys() - inspect.signature(CORPORA[name]).parameters.keys()):
        raise DataError(f"corpus {name!r} has no option {odd[0]!r}")
    return CORPORA[name](**options)
