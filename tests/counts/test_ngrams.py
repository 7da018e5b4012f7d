"""N-grams are counted as by a dictionary, at any order and vocabulary, and numbered in a second text too."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.counts.ngrams import count_ngrams, sum_before
from babyjax.errors import TokenError

texts = st.lists(st.integers(0, 3), max_size=40).map(lambda ids: np.array(ids, np.int32))


def grams_of(levels):
    """Every n-gram of each level as a tuple."""
    every = [[(token,) for token in levels[0].last.tolist()]]
    for level in levels[1:]:
        every.append([(*every[-1][parent], token) for parent, token in zip(level.prefix, level.last, strict=True)])
    return every


@given(tokens=texts, after=texts, order=st.integers(1, 5), vocab_size=st.sampled_from([4, 50_257]))
def test_ngrams_are_those_of_a_dictionary(tokens, after, order, vocab_size):
    if vocab_size > 4:  # four tokens to a word
        tokens, after = tokens * 16_000, after * 16_000
    levels = count_ngrams(tokens, vocab_size, order, after)
    for length, (level, grams) in enumerate(zip(levels, grams_of(levels), strict=True), 1):
        counted = Counter(tuple(tokens[i : i + length].tolist()) for i in range(len(tokens) - length + 1))
        ends = max(len(after) - length + 1, 0)
        there = [tuple(after[i : i + length].tolist()) for i in range(ends)]
        if length > 1:
            assert grams == sorted({*counted, *there})
            shorter = grams_of(levels)[length - 2]
            assert [shorter[number] for number in level.suffix] == [gram[1:] for gram in grams]
        assert {gram: count for gram, count in zip(grams, level.counts, strict=True) if count} == counted
        assert [grams[number] for number in level.after[:ends]] == there
        assert (level.after[ends:] == -1).all() or length == 1


def test_ids_out_of_range_are_refused():
    with pytest.raises(TokenError, match="token id 4"):
        count_ngrams(np.array([0, 4]), 4, 2)
    with pytest.raises(TokenError, match="token id -1"):
        count_ngrams(np.array([0, 1]), 4, 2, np.array([-1]))


@given(groups=st.lists(st.integers(0, 3), max_size=30), seed=st.integers(0, 9))
def test_sums_before_are_those_of_a_loop(groups, seed):
    change = np.random.default_rng(seed).integers(-3, 4, (len(groups), 2))
    totals, expected = defaultdict(lambda: np.zeros(2, int)), []
    for group, more in zip(groups, change, strict=True):
        expected.append(totals[group].copy())
        totals[group] += more
    np.testing.assert_array_equal(sum_before(np.array(groups, int), change), np.reshape(expected, (-1, 2)))
