from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from babyjax.checks import check_tokens
from babyjax.errors import ConfigError, CountError, TokenError
from babyjax.models import bigram
from babyjax.models.bigram import Bigram, count_chunks, count_matrix

V = 5
LENGTHS = st.sampled_from([0, 1, 2, 9, 24, 40])  # few, since each is compiled
texts = hnp.arrays(np.int32, LENGTHS, elements=st.integers(0, V - 1))


def counted_as_the_seed_does(tokens, vocab_size):
    transition = np.zeros((vocab_size, vocab_size), np.int32)
    for x, y in pairwise(tokens):
        transition[x, y] += 1
    return transition


def test_a_small_text_by_hand():
    # a b a b a c: a->b twice, b->a twice, a->c once.
    counts = count_matrix(np.array([0, 1, 0, 1, 0, 2], np.int32), 3)
    chex.assert_trees_all_equal(counts, jnp.array([[0, 2, 1], [2, 0, 0], [0, 0, 0]], jnp.int32))


@given(texts)
def test_counts_are_those_of_the_seeds_loop_with_and_without_jit(tokens):
    expected = counted_as_the_seed_does(tokens, V)
    counts = count_matrix(tokens, V)
    chex.assert_type(counts, jnp.int32)
    chex.assert_trees_all_equal(counts, jnp.asarray(expected))
    with jax.disable_jit():
        chex.assert_trees_all_equal(count_matrix(tokens, V), jnp.asarray(expected))


def test_long_texts_are_counted_in_parts_and_nothing_is_lost(rng):
    tokens = rng.integers(0, V, 100_003).astype(np.int32)
    assert 100_002 // (16 * V**2) > 8  # so that all parts are used
    chex.assert_trees_all_equal(count_matrix(tokens, V), jnp.asarray(counted_as_the_seed_does(tokens, V)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_narrow_and_wide_ids_are_counted_alike(rng, dtype):
    tokens = rng.integers(0, 200, 500)
    expected = counted_as_the_seed_does(tokens, 200)
    chex.assert_trees_all_equal(count_matrix(tokens.astype(dtype), 200), jnp.asarray(expected))
    chex.assert_trees_all_equal(count_chunks([tokens.astype(dtype)], 200), jnp.asarray(expected))


def test_two_indices_count_what_one_flattened_index_counts(rng, monkeypatch):
    tokens = rng.integers(0, V, 1000).astype(np.int32)
    flat = count_matrix(tokens, V)
    monkeypatch.setattr(bigram, "MAX_FLAT_VOCAB", V - 1)
    two = bigram.add_pairs(jnp.zeros((V, V), jnp.int32), jnp.asarray(tokens[:-1]), jnp.asarray(tokens[1:]))
    chex.assert_trees_all_equal(two, flat)


def test_the_flat_index_is_used_exactly_where_it_fits_an_int32():
    largest = bigram.MAX_FLAT_VOCAB
    assert largest**2 - 1 <= 2**31 - 1 < (largest + 1) ** 2 - 1


@pytest.mark.slow
def test_a_vocabulary_beyond_the_flat_index_is_counted_right():
    vocab_size = bigram.MAX_FLAT_VOCAB + 1
    last = vocab_size - 1
    counts = count_matrix(np.array([last, last, 0, last, last], np.int32), vocab_size)  # 8.6 GB
    counts = np.asarray(counts)
    assert np.flatnonzero(counts.any(axis=1)).tolist() == [0, last]
    assert counts[last, last] == 2
    assert counts[last, 0] == counts[0, last] == 1
    assert counts[0].sum() + counts[last].sum() == 4


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("bad", [V, 60_000])
def test_an_id_out_of_range_is_refused(dtype, bad):
    with pytest.raises(TokenError, match=f"token id {bad} is outside the vocabulary of {V} tokens"):
        count_matrix(np.array([0, bad, 1]).astype(dtype), V)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_a_text_has_one_axis(shape):
    with pytest.raises(TokenError, match=r"tokens must be one text of shape \(L,\), got shape "):
        count_matrix(np.zeros(shape, np.int32), V)


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_ids_are_integers(dtype):
    with pytest.raises(TokenError, match=f"token ids must be integers, got {np.dtype(dtype)}"):
        check_tokens(np.zeros(3, dtype), V)


@pytest.mark.parametrize("count", [count_matrix, lambda tokens, vocab_size: count_chunks([tokens], vocab_size)])
def test_a_negative_id_is_refused(count):
    with pytest.raises(TokenError, match="token id -2 is outside"):
        count(np.array([0, -2, 1], np.int32), V)
    with pytest.raises(TokenError, match="token id -2 is outside"):
        Bigram.from_tokens(jnp.array([0, -2, 1]), V)


def test_counting_may_be_part_of_a_larger_program():
    tokens = jnp.array([0, 1, 0])
    assert int(jax.jit(lambda t: count_matrix(t, V).sum())(tokens)) == 2


@given(texts, st.lists(LENGTHS, max_size=4))
def test_chunks_count_what_the_whole_counts(tokens, cuts):
    chunks = np.split(tokens, sorted(min(cut, len(tokens)) for cut in cuts))
    chex.assert_trees_all_equal(count_chunks(chunks, V), count_matrix(tokens, V))


def test_a_count_beyond_int32_is_refused(monkeypatch):
    nearly_full = jnp.full((V, V), 2**31 - 2, jnp.int32)
    monkeypatch.setattr(bigram.jnp, "zeros", lambda *_: nearly_full)
    with pytest.raises(CountError):
        count_chunks([np.zeros(4, np.int32)], V)


def test_lookup_is_the_seeds_forward():
    tokens = np.array([0, 1, 0, 1, 0, 2], np.int32)
    model = Bigram.from_tokens(tokens, 3)
    rows = model.lookup(jnp.array([[0, 2], [1, 0]]))
    chex.assert_trees_all_equal(rows, jnp.array([[[0, 2, 1], [0, 0, 0]], [[2, 0, 0], [0, 2, 1]]], jnp.int32))


@given(texts, st.sampled_from([0.0, 0.01, 1.0, 3.0]))
def test_logits_are_log_probabilities_of_the_smoothed_counts(tokens, smoothing):
    model = Bigram.from_tokens(tokens, V, smoothing)
    logits = model(jnp.arange(V)[None])
    chex.assert_shape(logits, (1, V, V))
    chex.assert_type(logits, jnp.float32)
    counts = counted_as_the_seed_does(tokens, V) + smoothing
    totals = counts.sum(axis=1, keepdims=True)
    expected = np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / V)
    np.testing.assert_allclose(np.exp(logits[0]), expected, rtol=2e-6)


def test_seen_contexts_have_the_seeds_probabilities_and_unseen_ones_are_uniform():
    # The seed divides a row by its sum, at least 1: right where there are counts, all zero where there are none.
    model = Bigram.from_tokens(np.array([0, 1, 0, 1, 0, 2], np.int32), 3, smoothing=0.0)
    probabilities = jnp.exp(model(jnp.array([[0, 1, 2]])))[0]
    chex.assert_trees_all_close(probabilities, jnp.array([[0, 2 / 3, 1 / 3], [1, 0, 0], [1 / 3] * 3]), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-1.0, float("nan")])
def test_smoothing_is_not_negative(smoothing):
    with pytest.raises(ConfigError, match=f"smoothing must be at least 0 and finite, got {smoothing}"):
        Bigram(jnp.zeros((V, V), jnp.int32), smoothing)
