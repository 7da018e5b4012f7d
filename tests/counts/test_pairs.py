from unittest import mock

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from babyjax import CharTokenizer, PairCounts, Split, batch_at, count_matrix, count_windows, split_tokens
from babyjax.counts import pairs as pairs_module
from babyjax.data import batches
from babyjax.data.preparing import prepare_corpus
from babyjax.errors import CountError, DataError, TokenError

V = 6
texts = hnp.arrays(np.int32, st.integers(30, 60), elements=st.integers(0, V - 1))


@given(texts)
def test_pair_counts_are_the_count_matrix_of_each_split(tokens):
    split = split_tokens(tokens)
    pairs = PairCounts.from_split(split, V)
    for name, part in split._asdict().items():
        matrix = np.zeros((V, V), np.int32)
        matrix[pairs.current, pairs.following] = pairs.counts[name]
        expected = np.zeros((V, V), np.int32)
        np.add.at(expected, (part[:-1], part[1:]), 1)
        np.testing.assert_array_equal(matrix, expected)
        np.testing.assert_array_equal(pairs.context_totals(name), matrix.sum(axis=1))
    assert (pairs.counts["train"] + pairs.counts["val"] > 0).all()


def test_an_id_out_of_range_is_an_error():
    with pytest.raises(TokenError, match="token id 6 is outside"):
        PairCounts.from_split(Split(np.array([0, 1], np.int32), np.array([0, 6], np.int32)), V)


@pytest.mark.parametrize("length", [0, 1])
def test_a_split_without_a_pair_is_an_error(length):
    with pytest.raises(DataError, match="val split has no pair"):
        PairCounts.from_split(Split(np.zeros(5, np.int32), np.zeros(length, np.int32)), V)


def assert_equal(ours: PairCounts, theirs: PairCounts) -> None:
    np.testing.assert_array_equal(ours.current, theirs.current)
    np.testing.assert_array_equal(ours.following, theirs.following)
    for name, matrix in theirs.segments.items():
        np.testing.assert_array_equal(ours.segments[name].toarray(), matrix.toarray())
    assert ours.vocab_size == theirs.vocab_size


@given(texts, st.sampled_from([V, 2000]))
def test_pairs_are_counted_in_pieces_as_at_once(tokens, vocab_size):
    split = split_tokens(tokens)
    expected = PairCounts.from_split(split, vocab_size)
    with mock.patch.object(pairs_module, "CHUNK", 7), mock.patch.object(batches, "CHUNK", 7):
        assert_equal(PairCounts.from_split(Split(*(part.astype(np.uint16) for part in split)), vocab_size), expected)


def test_a_text_with_too_many_different_pairs_is_counted_in_fewer_segments(rng, monkeypatch):
    split = Split(*rng.integers(0, 2000, (2, 100_000)).astype(np.int32))
    expected = PairCounts.from_split(split, 2000)
    assert expected.segments["train"].shape[0] == 19
    monkeypatch.setattr(pairs_module, "MAX_ENTRIES", 60_000)
    fewer = PairCounts.from_split(split, 2000)
    assert fewer.segments["train"].shape[0] == 11
    np.testing.assert_array_equal(fewer.counts["train"], expected.counts["train"])


def test_pair_counts_are_kept_in_a_file(rng, tmp_path):
    pairs = PairCounts.from_split(split_tokens(rng.integers(0, 9, 12_000).astype(np.int32)), 10)
    pairs.save(tmp_path / "pairs.npz", "this text")
    assert_equal(PairCounts.load(tmp_path / "pairs.npz", "this text"), pairs)
    with pytest.raises(ValueError, match="has no pair counts"):
        PairCounts.load(tmp_path / "pairs.npz", "another")
    content = (tmp_path / "pairs.npz").read_bytes()
    middle = len(content) // 2
    for damaged in (content[:-50], b"", b"no", content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
        (tmp_path / "pairs.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="has no pair counts"):
            PairCounts.load(tmp_path / "pairs.npz", "this text")


def test_the_folder_of_a_prepared_corpus_keeps_its_pair_counts(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("to be or not to be " * 9)
    corpus = prepare_corpus(tmp_path / "out", str(tmp_path / "text.txt"))
    split = split_tokens(corpus.tokens)
    first = PairCounts.of_corpus(corpus, split, 7)
    assert_equal(first, PairCounts.from_split(split, 7))
    with monkeypatch.context() as never_again:
        never_again.setattr(PairCounts, "from_split", None)
        assert_equal(PairCounts.of_corpus(corpus, split, 7), first)
    (tmp_path / "out" / "pairs.npz").write_bytes(b"no")
    assert_equal(PairCounts.of_corpus(corpus, split, 7), first)
    assert_equal(PairCounts.of_corpus(corpus, split, 7), first)


def test_pair_counts_from_count_matrices_are_those_of_the_text(rng):
    tokens = rng.integers(0, 9, 500).astype(np.int32)
    split = Split(tokens[:450], tokens[450:])
    expected = PairCounts.from_split(split, 10)
    tables = [count_matrix(part, 10) for part in split]
    for name, part in zip(("train", "val"), tables, strict=True):
        np.testing.assert_array_equal(np.asarray(part)[expected.current, expected.following], expected.counts[name])
    assert_equal(PairCounts.from_counts(*tables), expected)
    with pytest.raises(DataError, match="the val split has no pair"):
        PairCounts.from_counts(tables[0], jnp.zeros_like(tables[0]))


@pytest.mark.parametrize("length", [60, 500])
@pytest.mark.parametrize("dense", [0, 1024])
def test_pairs_are_the_same_counted_in_a_table_and_by_sorting(rng, monkeypatch, length, dense):
    monkeypatch.setattr("babyjax.counts.pairs.DENSE_VOCAB", dense)
    tokens = rng.integers(0, 30, length).astype(np.int32)
    split = split_tokens(tokens)
    assert_equal(PairCounts.from_split(split, 30), PairCounts.from_counts(*(count_matrix(part, 30) for part in split)))


def test_segments_add_up_to_the_counts(rng, monkeypatch):
    tokens = rng.integers(0, V, 1000).astype(np.int32)
    split = Split(tokens, tokens[:90])
    whole = PairCounts.from_split(split, V)
    monkeypatch.setattr("babyjax.data.batches.SEGMENT_TOKENS", 100)
    pairs = PairCounts.from_split(split, V)
    assert [matrix.shape[0] for matrix in pairs.segments.values()] == [9, 1]
    chex.assert_trees_all_equal(pairs.counts, whole.counts)
    third = PairCounts.from_split(Split(tokens[222:334], tokens), V).counts["train"]
    np.testing.assert_array_equal(pairs.segments["train"].toarray()[2], third)


def test_the_baseline_is_the_entropy_on_train_and_the_add_one_bigram_elsewhere(rng):
    pairs = PairCounts.from_split(split_tokens(rng.integers(0, V, 60).astype(np.int32)), V)
    assert pairs.baseline("train") == pairs.entropy("train")
    assert pairs.baseline("val") == pairs.add_k_loss("val", 1.0)


def test_songci_figures(songci):
    tokenizer = CharTokenizer.fit(songci.text)
    pairs = PairCounts.from_split(split_tokens(tokenizer.encode(songci.text)), tokenizer.vocab_size)
    assert tokenizer.vocab_size == 6104
    assert pairs.entropy("train") == pytest.approx(4.1787864, abs=1e-7)
    assert pairs.add_k_loss("val", 1.0) == pytest.approx(5.9126129, abs=1e-7)
    assert pairs.add_k_loss("val", 0.01) == pytest.approx(5.1841016, abs=1e-7)


def test_counting_windows_counts_the_pairs_of_the_training_batches(rng):
    tokens = jnp.asarray(rng.integers(0, V, 100), jnp.int32)
    counts = count_windows(tokens, V, 5, steps=7, batch_size=3, block_size=4)
    expected = np.zeros((V, V), np.int32)
    for step in range(7):
        inputs, targets = batch_at(tokens, 5, step, 3, 4)
        np.add.at(expected, (np.asarray(inputs), np.asarray(targets)), 1)
    chex.assert_trees_all_equal(counts, jnp.asarray(expected))


def test_counting_windows_checks_its_arguments():
    tokens = np.zeros(20, np.int32)
    with pytest.raises(TokenError, match="token id 9"):
        count_windows(np.array([0, 9] * 10, np.int32), V, 0, steps=1, batch_size=1, block_size=1)
    with pytest.raises(DataError, match="20 tokens is too short for a block of 20"):
        count_windows(tokens, V, 0, steps=1, batch_size=1, block_size=20)
    with pytest.raises(CountError, match="more than an int32 counts"):
        count_windows(tokens, V, 0, steps=2**20, batch_size=2**8, block_size=2**3)
