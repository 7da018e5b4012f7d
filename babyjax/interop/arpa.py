"""N-grams in the ARPA format, which KenLM, SRILM and others read and write.

A token is a word of the file as the tokenizer's `words` says, so that a text can be recovered from its words. The
markers that the format wants (<s>, </s>, <unk>) have log10 probability -99: our texts have no sentences.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from babyjax.errors import DataError
from babyjax.models.ngram import MAX_ORDER, NGram
from babyjax.text import truncated

MARKERS = ("<unk>", "<s>", "</s>")
NEVER = -99.0
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?")


def arpa_lines(model: NGram, words: Sequence[str]) -> Iterator[str]:
    """Return the lines of the ARPA file of a model whose token i is `words[i]`."""
    levels, first = model.levels(), np.asarray(model.first_child[...])
    last = np.asarray(model.last[...])
    yield "\\data\\"
    for length, level in enumerate(levels, 1):
        yield f"ngram {length}={level.stop - level.start + len(MARKERS) * (length == 1)}"
    grams = [""]
    for length, level in enumerate(levels, 1):
        yield f"\n\\{length}-grams:"
        if length == 1:
            yield from (f"{NEVER:g}\t{marker}\t0" for marker in MARKERS)
        before = slice(0, 1) if length == 1 else levels[length - 2]
        parents = np.repeat(np.arange(len(grams)), np.diff(first[before.start : before.stop + 1]))
        grams = [
            f"{grams[parent]} {words[token]}".lstrip(" ") for parent, token in zip(parents, last[level], strict=True)
        ]
        probability = _log10(jnp.minimum(model.log_probability[level], 0))
        if length < len(levels):
            backoff = _log10(model.log_backoff[level])
            yield from (f"{p:.7g}\t{g}\t{b:.7g}" for p, g, b in zip(probability, grams, backoff, strict=True))
        else:
            yield from (f"{p:.7g}\t{g}" for p, g in zip(probability, grams, strict=True))
    yield "\n\\end\\"


def _log10(logs: jax.Array) -> list[float]:
    return (np.asarray(logs, np.float64) / math.log(10) + 0.0).tolist()  # no -0


class _Grams(NamedTuple):
    """The n-grams of one length in a file, and the natural logarithms of their probabilities and backoff weights."""

    tokens: Int[np.ndarray, "N n"]
    log_probability: Float[np.ndarray, " N"]
    log_backoff: Float[np.ndarray, " N"]


def read_arpa(path: str | Path, words: Sequence[str]) -> NGram:
    """Return the model of an ARPA file for the tokens that `words` names.

    N-grams with other words or markers are left out, and the probabilities after each context scaled to sum to one, so
    a file over the same tokens stays as it is. A token without a 1-gram has the probability of <unk>.

    Raises: DataError, with the line, if it is not such a file.
    """
    levels = _read_levels(Path(path), words)
    first = levels[0]
    vocab_size, parents = len(words), [np.zeros(len(words), np.int64)]
    keys = [np.arange(vocab_size)]  # parent * vocab_size + last token, sorted
    log_p = [first.log_probability - np.logaddexp.reduce(first.log_probability)]
    log_b = [first.log_backoff]
    for length, level in enumerate(levels[1:], 2):
        parent, size = _find(keys, level.tokens[:, :-1], vocab_size), len(keys[-1])
        if (parent < 0).any():
            gram = " ".join(words[int(token)] for token in level.tokens[np.argmin(parent), :-1])
            raise DataError(f"{path} has n-grams that continue {truncated(gram)!r}, but not that itself")
        # Scale what follows each context to a sum of one: its own n-grams, and the rest by the backoff weight.
        lower = log_p[0][level.tokens[:, -1]]
        if length > 2:
            last = [each.tokens[:, -1] for each in levels[: length - 1]]
            model = NGram.from_levels(vocab_size, last, parents, log_p, log_b[:-1])
            lower = -np.asarray(jax.jit(NGram.nats)(model, jnp.asarray(level.tokens[:, 1:]))[:, -1], np.float64)
        rest = 1 - np.bincount(parent, np.exp(lower), size)
        followed = np.bincount(parent, minlength=size) > 0
        total = np.bincount(parent, np.exp(level.log_probability), size) + np.exp(log_b[-1]) * rest
        scale = np.log(np.where(followed, np.maximum(total, np.finfo(float).tiny), 1.0))
        log_b[-1] = np.where(followed, log_b[-1] - scale, 0.0)
        parents.append(parent)
        keys.append(parent * vocab_size + level.tokens[:, -1])
        log_p.append(level.log_probability - scale[parent])
        log_b.append(level.log_backoff)
    return NGram.from_levels(vocab_size, [each.tokens[:, -1] for each in levels], parents, log_p, log_b[:-1])


def _find(keys: list[Int[np.ndarray, " _"]], grams: Int[np.ndarray, "M n"], vocab_size: int) -> Int[np.ndarray, " M"]:
    """Return the number of each n-gram among those of its length, -1 if it is not there."""
    found = np.zeros(len(grams), np.int64)
    for level, token in zip(keys, grams.T, strict=True):
        key = np.where(found < 0, -1, found * vocab_size + token)
        place = np.searchsorted(level, key).clip(max=len(level) - 1)
        found = np.where(level[place] == key, place, -1)
    return found


def _read_levels(path: Path, words: Sequence[str]) -> list[_Grams]:
    """Return the n-grams of a file by length, sorted; those of one token are all that `words` names."""
    ids = {word: token for token, word in enumerate(words)}
    rows: list[list[tuple[list[int], float, float]]] = []
    unknown, length, line_number = None, 0, 0
    try:
        with path.open(encoding="utf-8") as file:
            for line_number, line in enumerate(file, 1):  # noqa: B007
                line = line.strip("\r\n ")
                if line == "\\end\\":
                    break
                if found := re.fullmatch(r"\\(\d+)-grams:", line):
                    rows.append([])
                    length = int(found[1])
                    if length != len(rows) or length > MAX_ORDER:
                        raise ValueError(f"n-grams of {length} tokens; lengths are 1, 2, ... up to {MAX_ORDER}")
                elif length and line:
                    fields = re.split("[ \t]+", line)
                    gram, numbers = fields[1 : length + 1], [fields[0], *fields[length + 1 :]]
                    if len(gram) != length or len(numbers) > 2 or not all(map(NUMBER.fullmatch, numbers)):
                        raise ValueError(f"expected a logarithm, {length} words and perhaps a backoff weight")
                    logarithm, backoff = (*map(float, numbers), 0.0)[:2]
                    tokens = [ids[word] for word in gram if word in ids]
                    if len(tokens) == length:
                        rows[-1].append((tokens, logarithm, backoff))
                    elif gram == ["<unk>"]:
                        unknown = logarithm
            else:
                raise ValueError("the end, \\end\\, is missing")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is not an ARPA file, line {line_number:,}: {truncated(str(error))}") from None
    if not rows or not rows[0]:
        raise DataError(f"{path} has no word of this vocabulary, as {words[0]}; see docs/ngrams.md for the words")
    missing = sorted(set(range(len(words))) - {tokens[0] for tokens, _, _ in rows[0]})
    if missing and (unknown is None or unknown <= NEVER):
        raise DataError(f"{path} has no probability for {truncated(words[missing[0]])!r}, nor for <unk>")
    rows[0] += [([token], unknown or 0.0, 0.0) for token in missing]
    while not rows[-1]:
        rows.pop()
    levels = []
    for length, level in enumerate(rows, 1):
        tokens, logarithm, backoff = zip(*level, strict=True)
        table = np.array(tokens, np.int64)
        order = np.lexsort(table.T[::-1])
        table = table[order]
        if (table[1:] == table[:-1]).all(axis=1).any():
            raise DataError(f"{path} has the same n-gram of {length} tokens twice")
        scaled = (np.array(column)[order] * math.log(10) for column in (logarithm, backoff))
        levels.append(_Grams(table, *scaled))
    return levels
