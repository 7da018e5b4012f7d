import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ladder import filled, logits_of, small
from scipy.special import log_softmax

from babyjax import (
    BabyGPT,
    BabyGPTConfig,
    Bigram,
    CharTokenizer,
    ContextEvaluator,
    ExactEvaluator,
    PairCounts,
    Split,
    split_tokens,
)
from babyjax.errors import ConfigError
from babyjax.evaluation import losses
from babyjax.evaluation.losses import Nats

V = 6
texts = hnp.arrays(np.int32, st.integers(30, 60), elements=st.integers(0, V - 1))
ONE_BYTE = np.ones(V, np.int64)


def network(vocab_size: int = V) -> BabyGPT:
    return filled(BabyGPTConfig(n_embd=3), vocab_size)


@settings(max_examples=10)  # each has pairs of its own, and so compiles
@given(texts, st.sampled_from([0.0, 0.01, 1.0]))
def test_the_exact_loss_of_a_bigram_is_the_closed_form_of_its_counts(tokens, smoothing):
    split = split_tokens(tokens)
    pairs = PairCounts.from_split(split, V)
    exact = ExactEvaluator(pairs, ONE_BYTE)(Bigram.from_tokens(split.train, V, smoothing))
    if smoothing:
        for name in ("train", "val"):
            assert exact[name].per_token == pytest.approx(pairs.add_k_loss(name, smoothing), rel=1e-5, abs=1e-6)
    else:  # it may give a pair of val no probability
        assert exact["train"].per_token == pytest.approx(pairs.baseline("train"), abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, V])
def test_chunks_of_contexts_do_not_change_the_losses(rows, rng, monkeypatch):
    monkeypatch.setattr(losses, "EXACT_LOGITS", rows * V)
    tokens = rng.integers(0, V, 200).astype(np.int32)
    tokens[tokens == 3] = 2  # one context is never seen
    pairs = PairCounts.from_split(split_tokens(tokens), V)
    model = network()
    nats = ExactEvaluator(pairs, ONE_BYTE).pair_nats(model)
    table = -log_softmax(np.asarray(logits_of(model, jnp.arange(V)[None]))[0], axis=1)
    np.testing.assert_allclose(nats, table[pairs.current, pairs.following], rtol=1e-5)


def test_a_pair_without_probability_costs_infinity_only_where_it_occurs():
    split = Split(np.array([0, 1, 0, 1, 0], np.int32), np.array([0, 0, 1], np.int32))
    evaluator = ExactEvaluator(PairCounts.from_split(split, 2), np.ones(2, np.int64))
    exact = evaluator(Bigram.from_tokens(split.train, 2, 0.0))
    assert exact["train"].per_token == pytest.approx(0, abs=1e-6)
    assert exact["val"].per_token == exact["val"].perplexity == exact["val"].bits_per_byte == np.inf


def test_nats_become_units():
    loss = Nats(nats=20 * np.log(2), tokens=10, bytes=5, standard_error=None)
    assert loss.per_token == pytest.approx(2 * np.log(2))
    assert loss.bits_per_byte == pytest.approx(4)
    assert loss.perplexity == pytest.approx(4)
    assert Nats(1e6, 1, 1, None).perplexity == np.inf


def test_the_standard_error_of_equal_segments_is_that_of_their_mean(rng):
    means = rng.normal(3, 0.1, 20)
    loss = Nats.of_segments(means * 5000, np.full(20, 5000), 100_000)
    assert loss.per_token == pytest.approx(means.mean())
    assert loss.standard_error == pytest.approx(means.std(ddof=1) / 20**0.5)
    assert Nats.of_segments(np.array([3.0]), np.array([5000]), 5000).standard_error is None
    assert Nats.of_segments(np.array([np.inf, 1]), np.array([2, 2]), 4).standard_error == np.inf


def test_the_standard_error_sees_that_neighboring_tokens_are_alike(rng):
    """A text whose topic changes every 2,500 tokens, by the pair counts and by windows."""
    topics = rng.dirichlet(np.full(V, 0.3), size=20)
    tokens = np.concatenate([rng.choice(V, 2500, p=topic) for topic in topics]).astype(np.int32)
    split, model = Split(tokens, tokens[:9000]), network()
    exact = ExactEvaluator(PairCounts.from_split(split, V), ONE_BYTE)(model)
    windows = ContextEvaluator(split, ONE_BYTE, 8)(model)
    assert exact["train"].tokens == windows["train"].tokens == 49_999
    assert windows["train"].standard_error == pytest.approx(exact["train"].standard_error, rel=0.02)
    table = -np.asarray(jax.nn.log_softmax(model(jnp.arange(V)[None])[0]))
    nats = table[tokens[:-1], tokens[1:]]
    independent = nats.std() / 49_999**0.5
    assert exact["train"].standard_error == pytest.approx(
        np.std([part.mean() for part in np.array_split(nats, 9)], ddof=1) / 9**0.5, rel=1e-4
    )
    assert exact["train"].standard_error > 5 * independent
    assert exact["val"].standard_error is windows["val"].standard_error is None  # one segment


def test_bits_per_byte_counts_the_utf8_of_predicted_tokens():
    text = "aé明" * 40
    tokenizer = CharTokenizer.fit(text)
    pairs = PairCounts.from_split(split_tokens(tokenizer.encode(text)), 3)
    exact = ExactEvaluator(pairs, tokenizer.byte_lengths)(network(3))
    assert exact["val"].tokens == 11
    assert exact["val"].bytes == len(text[108:].encode()) - 1  # the first, an "a", is not predicted


def test_models_that_pair_counts_cannot_evaluate_are_errors(rng):
    pairs = PairCounts.from_split(split_tokens(rng.integers(0, V, 60).astype(np.int32)), V)
    evaluator = ExactEvaluator(pairs, ONE_BYTE)
    with pytest.raises(ConfigError, match="a model of 5 tokens cannot be evaluated on a text with a vocabulary of 6"):
        evaluator(network(V - 1))
    with pytest.raises(ConfigError, match="this one sees 8"):
        evaluator(filled(small("babygpt-v2-position"), V))
    assert evaluator(filled(BabyGPTConfig(n_embd=3, vocab_size=V + 3), V))["val"].tokens == 5


def test_tinyshakespeare_figures(tinyshakespeare):
    tokenizer = CharTokenizer.fit(tinyshakespeare.text)
    split = split_tokens(tokenizer.encode(tinyshakespeare.text))
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    assert tokenizer.vocab_size == 65
    assert pairs.entropy("train") == pytest.approx(2.4519134, abs=1e-7)
    evaluator = ExactEvaluator(pairs, tokenizer.byte_lengths)
    for smoothing, name, nats in ((0.0, "train", 2.4519134), (1.0, "val", 2.4818894), (0.01, "val", 2.4875009)):
        exact = evaluator(Bigram.from_tokens(split.train, 65, smoothing))
        assert exact[name].per_token == pytest.approx(nats, abs=1e-5)


def test_songci_is_evaluated_in_chunks(songci):
    tokenizer = CharTokenizer.fit(songci.text)
    split = split_tokens(tokenizer.encode(songci.text))
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    exact = ExactEvaluator(pairs, tokenizer.byte_lengths)(Bigram.from_tokens(split.train, 6104, 0.0))
    assert exact["train"].per_token == pytest.approx(4.1787864, abs=1e-5)
