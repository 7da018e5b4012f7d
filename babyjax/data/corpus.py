"""Corpora: where the text comes from.

Every text is UTF-8. A byte-order mark is dropped and line ends become "\\n", so that the same text saved on
another system is the same corpus; its sha256 is taken after that.
"""

import contextlib
import hashlib
import http.client
import os
import unicodedata
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import platformdirs

from babyjax.errors import DataError
from babyjax.files import replace_file, user_path

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def fingerprint(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """A named text; `entropy_rate` in nats per character where the source is known in closed form."""

    name: str
    text: str
    entropy_rate: float | None = None

    @cached_property
    def sha256(self) -> str:
        """What tells this text from every other."""
        return fingerprint(self.text)


def decode_text(data: bytes, source: str) -> str:
    """UTF-8 bytes to text with "\\n" line ends and no byte-order mark.

    Raises `DataError`, naming `source`, for an empty text and for bytes that are not text.
    """
    try:
        text = data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); convert it to UTF-8 first"
        ) from None
    if "\0" in text:
        raise DataError(f"{source} is not text: it has a NUL byte at character {text.index(chr(0))}")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise DataError(f"{source} is empty")
    return text


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    """The corpus in a UTF-8 text file, named after the file. Raises `DataError` where it cannot be read."""
    try:
        data = user_path(path, DataError).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return Corpus(Path(path).stem, decode_text(data, str(path)))


def _pydocs() -> Corpus:
    """CPython's own language reference (`pydoc_data.topics`), ASCII-normalised. Differs between Python versions."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python comes without pydoc_data.topics; train on a text of yours: data.path=FILE"
        ) from None
    text = "\n".join(topics[name] for name in sorted(topics))
    text = text.translate(str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "ß": "ss"}))
    return Corpus("pydocs", unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode())


def _shakespeare(url: str = SHAKESPEARE_URL) -> Corpus:
    """Karpathy's tinyshakespeare: downloaded once, checked, then read from the user's cache folder."""
    cached = Path(platformdirs.user_cache_dir("babyjax")) / "tinyshakespeare.txt"
    if cached.is_file() and hashlib.sha256(cached.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
        return Corpus("shakespeare", read_corpus(cached).text)
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"could not download {url} ({getattr(error, 'reason', error)}); "
            "fetch it yourself and pass data.path=FILE, or use data=pydocs, which needs no network"
        ) from None
    if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
        raise DataError(f"what {url} sent is not tinyshakespeare (its sha256 differs); nothing was kept")
    text = decode_text(data, url)
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
        cached.parent.mkdir(parents=True, exist_ok=True)
        replace_file(cached, text)
    return Corpus("shakespeare", text)


def _synthetic(states: int = 26, length: int = 1_000_000, seed: int = 0) -> Corpus:
    """A seeded first-order Markov source whose entropy is known in closed form.

    From state i the next state is entry `byte` of row i of a table of 256, for a uniform random byte: so all
    transition probabilities are multiples of 1/256, and H = sum_i pi_i H(P_i) with pi the stationary distribution.
    """
    if states < 1 or length < 1:
        raise DataError(f"no source has {states} states and a text of {length} characters")
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(states, 0.3), size=states)
    table = [sorted(rng.choice(states, size=256, p=row).tolist()) for row in weights]
    state, path = 0, np.empty(length, np.uint32)
    for position, byte in enumerate(rng.bytes(length)):
        path[position] = state = table[state][byte]
    alphabet = np.array([ord("a") + i if states <= 26 else 0x4E00 + i for i in range(states)], "<u4")
    return Corpus("synthetic", alphabet[path].tobytes().decode("utf-32-le"), _entropy_rate(table))


def _entropy_rate(table: list[list[int]]) -> float:
    states = len(table)
    transition = np.stack([np.bincount(row, minlength=states) for row in table]) / 256
    # pi P = pi and sum(pi) = 1, in the least-squares sense: one linear system, unique for an irreducible source.
    system = np.vstack([transition.T - np.eye(states), np.ones(states)])
    stationary = np.linalg.lstsq(system, np.append(np.zeros(states), 1), rcond=None)[0]
    surprise = -np.log(transition, where=transition > 0, out=np.zeros_like(transition))
    return float(stationary @ (transition * surprise).sum(axis=1))


CORPORA: dict[str, Callable[..., Corpus]] = {
    "pydocs": _pydocs,
    "shakespeare": _shakespeare,
    "synthetic": _synthetic,
}


def load_corpus(name: str = "pydocs", **options) -> Corpus:
    """A corpus by name: `pydocs`, `shakespeare`, or `synthetic` with `states`, `length` and `seed`.

    Raises `DataError` for an unknown name or a text that cannot be had. For a file of yours see `read_corpus`.
    """
    if name not in CORPORA:
        raise DataError(f"unknown corpus {name!r}; there are {', '.join(CORPORA)}, and any text file by its path")
    try:
        return CORPORA[name](**options)
    except TypeError as error:
        raise DataError(f"the corpus {name!r} has no such option: {error}") from None
