import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from babyjax import (
    BabyGPT,
    Bigram,
    CharTokenizer,
    ExactEvaluator,
    PairCounts,
    count_matrix,
    count_windows,
    split_tokens,
)
from babyjax.data.batches import Split, batch_at
from babyjax.errors import CountError, DataError, TokenError
from babyjax.training import statistics
from babyjax.training.objective import sum_nats
from babyjax.training.statistics import Nats

V = 6
texts = hnp.arrays(np.int32, st.integers(30, 60), elements=st.integers(0, V - 1))
ONE_BYTE = np.ones(V, np.int64)


@given(texts)
def test_pair_counts_are_the_count_matrix_of_each_split(tokens):
    split = split_tokens(tokens)
    pairs = PairCounts.from_split(split, V)
    for name, part in split._asdict().items():
        matrix = np.zeros((V, V), np.int32)
        matrix[pairs.current, pairs.following] = pairs.counts[name]
        chex.assert_trees_all_equal(jnp.asarray(matrix), count_matrix(part, V))
        np.testing.assert_array_equal(pairs.context_totals(name), matrix.sum(axis=1))
    assert (pairs.counts["train"] + pairs.counts["val"] > 0).all()


def test_pair_counts_refuse_an_id_out_of_range():
    with pytest.raises(TokenError, match="token id 6 is outside"):
        PairCounts.from_split(Split(np.array([0, 1], np.int32), np.array([0, 6], np.int32)), V)


@settings(max_examples=10)  # each has pairs of its own, and so compiles
@given(texts, st.sampled_from([0.01, 1.0]))
def test_add_k_loss_is_that_of_the_bigram_model(tokens, smoothing):
    split = split_tokens(tokens)
    pairs = PairCounts.from_split(split, V)
    losses = ExactEvaluator(pairs, ONE_BYTE)(Bigram.from_tokens(split.train, V, smoothing))
    for name in ("train", "val"):
        assert losses[name].per_token == pytest.approx(pairs.add_k_loss(name, smoothing), rel=1e-5, abs=1e-6)


@settings(max_examples=10)
@given(texts)
def test_the_floor_of_train_is_the_unsmoothed_bigrams_loss_and_that_of_val_the_add_one_bigrams(tokens):
    split = split_tokens(tokens)
    pairs = PairCounts.from_split(split, V)
    unsmoothed = ExactEvaluator(pairs, ONE_BYTE)(Bigram.from_tokens(split.train, V, 0.0))
    assert unsmoothed["train"].per_token == pytest.approx(pairs.bigram_floor("train"), abs=1e-5)
    assert pairs.bigram_floor("train") == pytest.approx(pairs.entropy("train"))
    assert pairs.bigram_floor("val") == pytest.approx(pairs.add_k_loss("val", 1.0))


@pytest.mark.parametrize("rows", [1, 2, V])
def test_chunks_of_contexts_do_not_change_the_losses(rows, rng, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK_LOGITS", rows * V)
    tokens = rng.integers(0, V, 200).astype(np.int32)
    tokens[tokens == 3] = 2  # one context is never seen
    split = split_tokens(tokens)
    pairs = PairCounts.from_split(split, V)
    model = BabyGPT(V, 3, key=jax.random.key(0))
    nats = ExactEvaluator(pairs, ONE_BYTE).pair_nats(model)
    table = -jax.nn.log_softmax(model(jnp.arange(V)[None])[0])
    np.testing.assert_allclose(nats, table[pairs.current, pairs.following], rtol=1e-5)


def test_a_pair_without_probability_costs_infinity_only_where_it_occurs():
    split = Split(np.array([0, 1, 0, 1, 0], np.int32), np.array([0, 0, 1], np.int32))
    losses = ExactEvaluator(PairCounts.from_split(split, 2), np.ones(2, np.int64))(
        Bigram.from_tokens(split.train, 2, 0.0)
    )
    assert losses["train"].per_token == pytest.approx(0, abs=1e-6)
    assert losses["val"].per_token == losses["val"].perplexity == losses["val"].bits_per_byte == np.inf


def test_nats_become_units():
    loss = Nats(nats=20 * np.log(2), tokens=10, bytes=5, variance=25 * np.log(2) ** 2)
    assert loss.per_token == pytest.approx(2 * np.log(2))
    assert loss.bits_per_byte == pytest.approx(4)
    assert loss.perplexity == pytest.approx(4)
    assert loss.standard_error == pytest.approx(np.log(2) / 2)
    assert Nats(1e6, 1, 1, 0).perplexity == np.inf


def test_bits_per_byte_counts_the_utf8_of_predicted_tokens():
    text = "aé明" * 40
    tokenizer = CharTokenizer.fit(text)
    split = split_tokens(tokenizer.encode(text))
    losses = ExactEvaluator(PairCounts.from_split(split, 3), tokenizer.byte_lengths)(
        BabyGPT(3, 2, key=jax.random.key(0))
    )
    assert losses["val"].tokens == 11
    assert losses["val"].bytes == len(text[108:].encode()) - 1  # the first, an "a", is not predicted


def test_counting_windows_counts_the_pairs_of_the_training_batches(rng):
    tokens = jnp.asarray(rng.integers(0, V, 100), jnp.int32)
    counts = count_windows(tokens, V, 5, steps=7, batch_size=3, block_size=4)
    expected = np.zeros((V, V), np.int32)
    for step in range(7):
        inputs, targets = batch_at(tokens, 5, step, 3, 4)
        np.add.at(expected, (np.asarray(inputs), np.asarray(targets)), 1)
    chex.assert_trees_all_equal(counts, jnp.asarray(expected))


def test_counting_windows_checks_what_it_is_given():
    tokens = np.zeros(20, np.int32)
    with pytest.raises(TokenError, match="token id 9"):
        count_windows(np.array([0, 9] * 10, np.int32), V, 0, steps=1, batch_size=1, block_size=1)
    with pytest.raises(DataError, match="20 tokens is too short for a block of 20"):
        count_windows(tokens, V, 0, steps=1, batch_size=1, block_size=20)
    with pytest.raises(CountError, match="more than an int32 counts"):
        count_windows(tokens, V, 0, steps=2**20, batch_size=2**8, block_size=2**3)


def test_a_split_without_a_pair_is_refused():
    with pytest.raises(DataError, match="val split has no pair"):
        PairCounts.from_split(Split(np.zeros(5, np.int32), np.zeros(1, np.int32)), V)


def test_tinyshakespeare_figures(tinyshakespeare):
    tokenizer = CharTokenizer.fit(tinyshakespeare.text)
    split = split_tokens(tokenizer.encode(tinyshakespeare.text))
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    assert tokenizer.vocab_size == 65
    assert pairs.entropy("train") == pytest.approx(2.4519134, abs=1e-7)
    evaluator = ExactEvaluator(pairs, tokenizer.byte_lengths)
    assert evaluator(Bigram.from_tokens(split.train, 65, 0.0))["train"].per_token == pytest.approx(2.4519134, abs=1e-5)
    assert evaluator(Bigram.from_tokens(split.train, 65, 1.0))["val"].per_token == pytest.approx(2.4818894, abs=1e-5)
    assert evaluator(Bigram.from_tokens(split.train, 65, 0.01))["val"].per_token == pytest.approx(2.4875009, abs=1e-5)


def test_songci_figures(songci):
    tokenizer = CharTokenizer.fit(songci.text)
    split = split_tokens(tokenizer.encode(songci.text))
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    assert tokenizer.vocab_size == 6104
    assert pairs.entropy("train") == pytest.approx(4.1787864, abs=1e-7)
    evaluator = ExactEvaluator(pairs, tokenizer.byte_lengths)
    assert evaluator(Bigram.from_tokens(split.train, 6104, 0.0))["train"].per_token == pytest.approx(
        4.1787864, abs=1e-5
    )
    assert pairs.add_k_loss("val", 1.0) == pytest.approx(5.9126129, abs=1e-7)
    assert pairs.add_k_loss("val", 0.01) == pytest.approx(5.1841016, abs=1e-7)


def test_objective_is_the_mean_over_tokens(rng):
    model = BabyGPT(V, 3, key=jax.random.key(0))
    inputs, targets = (jnp.asarray(rng.integers(0, V, (2, 5)), jnp.int32) for _ in range(2))
    probabilities = jax.nn.softmax(model(inputs))
    by_hand = -np.mean([np.log(probabilities[b, t, targets[b, t]]) for b in range(2) for t in range(5)])
    assert float(sum_nats(model, inputs, targets)) / targets.size == pytest.approx(by_hand, rel=1e-6)


def test_pair_counts_from_count_matrices_are_those_of_the_text(rng):
    tokens = rng.integers(0, 9, 500).astype(np.int32)
    split = Split(tokens[:450], tokens[450:])
    expected = PairCounts.from_split(split, 10)
    pairs = PairCounts.from_counts(*(count_matrix(part, 10) for part in split))
    chex.assert_trees_all_equal(vars(pairs), vars(expected))
    with pytest.raises(DataError, match="the val split has no pair"):
        PairCounts.from_counts(count_matrix(tokens, 10), count_matrix(tokens[:1], 10))


def test_pairs_are_the_same_counted_in_a_table_and_by_sorting(rng, monkeypatch):
    tokens = rng.integers(0, 9, 500).astype(np.int32)
    split = Split(tokens[:450], tokens[450:])
    table = PairCounts.from_split(split, 10)
    monkeypatch.setattr("babyjax.training.statistics.DENSE_VOCAB", 0)
    chex.assert_trees_all_equal(vars(PairCounts.from_split(split, 10)), vars(table))
