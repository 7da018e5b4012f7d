"""The n-grams of a text, counted by sorting it once.

Sorting the places of a text by the tokens that start there puts equal n-grams side by side, for every n at once.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer, Shaped

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
    codes = np.zeros(places + order, np.uint32)
    codes[: len(tokens)] = tokens
    codes[seam:places] = after
    codes[: len(tokens)] += 1
    codes[seam:places] += 1
    by_content = _sort(codes, places, order, int(vocab_size).bit_length())

    levels: list[Level] = []
    first, whole = np.arange(places) == 0, np.ones(places, bool)  # of its n-gram in sorted order; within one text
    at, number = np.zeros(places + 1, np.int32), np.zeros(places, np.int32)  # of the n-gram, by place and sorted
    for length in range(1, order + 1):
        code = codes[length - 1 :][by_content]
        first[1:] |= code[1:] != code[:-1]
        whole &= code > 0
        starts = np.flatnonzero(first & whole)
        last = code[starts].astype(np.int32) - 1
        if length == 1:
            prefix = suffix = np.zeros(vocab_size, np.int32)
            number, counts = code.astype(np.int32) - 1, np.zeros(vocab_size, np.int64)
        else:
            prefix, suffix = number[starts], at[by_content[starts] + 1]
            number, counts = np.cumsum(first & whole, dtype=np.int32) - 1, np.zeros(len(starts), np.int64)
        del code
        at = np.full(places + 1, -1, np.int32)
        at[by_content] = np.where(whole, number, -1)
        if len(starts):
            seen = np.add.reduceat(whole & (by_content < seam), starts, dtype=np.int64)
            counts[last if length == 1 else slice(None)] = seen
        if length == 1:
            last = np.arange(vocab_size, dtype=np.int32)
        levels.append(Level(prefix, last, suffix, counts, at[seam:places].copy()))
    return levels


def _sort(codes: Shaped[np.ndarray, " _"], places: int, order: int, bits: int) -> Int[np.ndarray, " K"]:
    """Return the places sorted by the `order` codes of `bits` bits after each.

    As many codes at a time as fit 64 bits beside the rank by the codes before.
    """
    rank, ranks, done, by_content = np.zeros(places, np.int32), 1, 0, np.arange(places)
    while done < order and ranks < places:
        width = min(order - done, (64 - (ranks - 1).bit_length()) // bits)
        key = rank.astype(np.uint64)
        for offset in range(done, done + width):
            key <<= np.uint64(bits)
            key |= codes[offset : offset + places]
        by_content = np.argsort(key)
        key = key[by_content]
        rank[by_content] = np.cumsum(np.append(False, key[1:] != key[:-1]), dtype=np.int32)
        ranks, done = 1 + int(rank[by_content[-1]]), done + width
    return by_content


def sum_before(group: Int[np.ndarray, " T"], change: Int[np.ndarray, "T *more"]) -> Int[np.ndarray, "T *more"]:
    """Return the sum of the changes at all earlier places of the same group."""
    order = np.argsort(group, kind="stable")
    group, change = group[order], change[order]
    total = np.cumsum(change, axis=0) - change
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    earlier = np.empty_like(total)
    earlier[order] = total - np.repeat(total[starts], np.diff(starts, append=len(group)), axis=0)
    return earlier
