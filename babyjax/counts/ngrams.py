"""The n-grams of a text, counted by sorting it once.

Sorting the places of a text by the tokens that start there puts equal n-grams side by side, for every n at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer

from babyjax.checks import check_tokens
from babyjax.errors import CountError


class Level(NamedTuple):
    """The distinct n-grams of one length. All tokens of the vocabulary are 1-grams; longer ones are those that occur.

    `prefix` and `suffix` are the n-gram without its last and first token, as numbers in the level below. N-grams are
    sorted by (prefix, last).
    """

    prefix: Int[np.ndarray, " N"]
    last: Int[np.ndarray, " N"]
    suffix: Int[np.ndarray, " N"]
    counts: Int[np.ndarray, " N"]  # how often it occurs in the text
    after: Int[np.ndarray, " M"]  # the n-gram that starts at each place of a second text, -1 past its end


def count_ngrams(
    tokens: Integer[np.ndarray, " L"],
    vocab_size: int,
    order: int,
    after: Integer[np.ndarray, " M"] | None = None,
) -> list[Level]:
    """Count the n-grams of `tokens`, n = 1 to `order`. Memory: about 40 bytes per token.

    With a second text, `after`, its n-grams are among those numbered, with a count of 0 if they occur only there. No
    n-gram crosses the seam.

    Raises: TokenError if an id is out of range, CountError if there are 2**31 tokens or more.
    """
    after = tokens[:0] if after is None else after
    check_tokens(tokens, vocab_size)
    check_tokens(after, vocab_size)
    seam = len(tokens) + 1
    places = seam + len(after)
    if places >= 2**31:
        raise CountError(f"{places:,} tokens are more n-grams than an int32 can number")
    # Codes are tokens plus one. A 0 ends a text, so an n-gram with a 0 in it is none.
    codes = np.zeros(places + order, np.int32)
    codes[: len(tokens)] = tokens
    codes[seam:places] = after
    codes[: len(tokens)] += 1
    codes[seam:places] += 1
    bits = int(vocab_size).bit_length()
    per_word = min(order, 64 // bits)
    parts = [(start, min(start + per_word, order)) for start in range(0, order, per_word)]
    by_content = _sort(_pack(codes, places, start, end, bits) for start, end in parts)

    levels: list[Level] = []
    first, whole = np.arange(places) == 0, np.ones(places, bool)  # of its n-gram in sorted order; within one text
    at, number = np.zeros(places + 1, np.int32), np.zeros(places, np.int32)  # of the n-gram, by place and sorted
    for length in range(1, order + 1):
        code = codes[by_content + (length - 1)]
        first[1:] |= code[1:] != code[:-1]
        whole &= code > 0
        starts = np.flatnonzero(first & whole)
        if length == 1:
            prefix, last = np.zeros(vocab_size, np.int32), np.arange(vocab_size, dtype=np.int32)
            suffix, number = prefix, code - 1
        else:
            prefix, last, suffix = number[starts], code[starts] - 1, at[by_content[starts] + 1]
            number = np.cumsum(first & whole, dtype=np.int32) - 1
        at = np.full(places + 1, -1, np.int32)
        at[by_content[whole]] = number[whole]
        counts = np.bincount(number[whole & (by_content < seam)], minlength=len(last))
        levels.append(Level(prefix, last, suffix, counts, at[seam:places]))
    return levels


def _sort(words: Iterator[np.ndarray]) -> Int[np.ndarray, " K"]:
    """Return the places sorted by the first word, those alike by the second, and so on."""
    word = next(words)
    by_content = np.argsort(word)
    group = np.zeros(len(word), np.int64)
    for following in words:
        word = word[by_content]
        group += np.append(0, np.cumsum(word[1:] != word[:-1]))
        alike = np.append(False, group[1:] == group[:-1])
        alike[:-1] |= alike[1:]
        tied = by_content[alike]
        by_content[alike] = tied[np.lexsort((following[tied], group[alike]))]
        word = following
    return by_content


def _pack(codes: Int[np.ndarray, " K"], places: int, start: int, end: int, bits: int) -> np.ndarray:
    """Return codes `start` to `end` after each place as one number, the first in the highest bits."""
    word = np.zeros(places, np.uint64)
    for offset in range(start, end):
        word <<= np.uint64(bits)
        word |= codes[offset : offset + places].astype(np.uint64)
    return word


def sum_before(group: Int[np.ndarray, " T"], change: Int[np.ndarray, "T *more"]) -> Int[np.ndarray, "T *more"]:
    """Return the sum of the changes at all earlier places of the same group."""
    order = np.argsort(group, kind="stable")
    group, change = group[order], change[order]
    total = np.cumsum(change, axis=0) - change
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    earlier = np.empty_like(total)
    earlier[order] = total - np.repeat(total[starts], np.diff(starts, append=len(group)), axis=0)
    return earlier
