import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding
from ladder import filled, logits_of, small

from babyjax import Bigram, ContextEvaluator, ExactEvaluator, Mixture, PairCounts, Split
from babyjax.data import batches
from babyjax.errors import ConfigError, TokenError
from babyjax.evaluation import losses as losses_module
from babyjax.evaluation.losses import _pair_nats, _token_nats

V, BLOCK = 7, 8
MODEL = filled(small("babygpt-v6-blocks"), V)
BYTES = np.arange(1, V + 1)


def nats_of(tokens, context_of):
    """Slowly: the loss of every token but the first, from the context `context_of` gives it."""
    nats = []
    for target in range(1, len(tokens)):
        first = context_of(target)
        window = np.zeros((1, BLOCK), np.int32)
        window[0, : target - first] = tokens[first:target]
        logits = np.asarray(jax.nn.log_softmax(logits_of(MODEL, window)[0, target - first - 1]), np.float64)
        nats.append(-logits[tokens[target]])
    return np.array(nats)


def start_of_window(target, stride):
    """The start of the window that scores a target: the first, or the one with it among its last `stride` targets."""
    if target <= BLOCK:
        return 0
    return math.ceil((target - BLOCK) / stride) * stride


@given(st.integers(0, 99), st.integers(2, 40), st.sampled_from([1, 3, 8]))
@settings(max_examples=15)
def test_every_token_is_scored_once_from_the_context_the_stride_leaves(seed, length, stride):
    tokens = np.random.default_rng(seed).integers(0, V, (2, length)).astype(np.int32)
    with mock.patch.object(losses_module, "WINDOW_TOKENS_ON_CPU", 4 * BLOCK):  # several chunks, and few programs
        losses = ContextEvaluator(Split(*tokens), BYTES, BLOCK, stride)(MODEL)
    for text, loss in zip(tokens, losses.values(), strict=True):
        contexts = [target - start_of_window(target, stride) for target in range(1, length)]
        assert all(BLOCK - stride + 1 <= c <= BLOCK for c in contexts[BLOCK:])
        expected = nats_of(text, lambda target: start_of_window(target, stride))
        assert loss.nats == pytest.approx(expected.sum(), rel=1e-5)
        assert (loss.tokens, loss.bytes) == (length - 1, BYTES[text[1:]].sum())


def test_a_stride_of_the_block_gives_windows_side_by_side():
    tokens = np.random.default_rng(0).integers(0, V, 41).astype(np.int32)
    loss = ContextEvaluator(Split(tokens, tokens), BYTES, BLOCK)(MODEL, ["val"])
    assert set(loss) == {"val"}
    logits = jax.nn.log_softmax(logits_of(MODEL, tokens[:-1].reshape(5, BLOCK)))
    expected = -np.take_along_axis(np.asarray(logits), tokens[1:].reshape(5, BLOCK, 1), axis=2)
    assert loss["val"].nats == pytest.approx(expected.sum(), rel=1e-5)
    assert loss["val"].standard_error is None


def as_trained_and_as_loaded(model):
    loaded = jax.tree.map(np.asarray, model)
    return jax.device_put(model, SingleDeviceSharding(jax.devices()[0])), jax.tree.map(jnp.array, loaded), loaded


def test_one_program_serves_a_trained_and_a_loaded_model_and_windows_of_any_text():
    text = np.random.default_rng(2).integers(0, V, 300).astype(np.int32)
    _token_nats.clear_cache()
    for model in as_trained_and_as_loaded(MODEL):
        for size in (300, 30):
            ContextEvaluator(Split(text[:size], text[:9]), BYTES, BLOCK)(model)
    assert _token_nats._cache_size() == 1


def test_one_program_serves_a_trained_and_a_loaded_model_of_one_previous_token():
    text = np.random.default_rng(3).integers(0, V, 300).astype(np.int32)
    evaluate = ExactEvaluator(PairCounts.from_split(Split(text, text), V), BYTES)
    _pair_nats.clear_cache()
    for model in as_trained_and_as_loaded(filled(small("babygpt"), V)):
        evaluate(model)
    assert _pair_nats._cache_size() == 1


def test_a_sample_of_tokens_is_spread_over_the_text_and_misses_the_whole_by_its_standard_error(monkeypatch):
    tokens = np.random.default_rng(1).integers(0, V, 40_001).astype(np.int32)
    split = Split(tokens, tokens[:20])
    monkeypatch.setattr(batches, "SEGMENT_TOKENS", 20)
    whole = ContextEvaluator(split, BYTES, BLOCK)(MODEL)["train"]
    told = []
    part = ContextEvaluator(split, BYTES, BLOCK, tokens=4000)(MODEL, progress=lambda *step: told.append(step))
    assert (part["train"].tokens, part["val"].tokens) == (4000, 19)
    error, of_whole = part["train"].standard_error, whole.standard_error
    assert error is not None
    assert of_whole is not None
    assert 0 < error < 0.1
    assert abs(part["train"].per_token - whole.per_token) < 4 * error
    assert error == pytest.approx(of_whole * 10**0.5, rel=0.1)
    assert told[-1] == ("val", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stride": 0}, "must lie in"), ({"stride": 9}, "must lie in"), ({"tokens": 0}, "must be at least 1")],
)
def test_options_that_leave_everything_or_something_out_are_errors(options, message):
    tokens = np.zeros(9, np.int32)
    with pytest.raises(ConfigError, match=message):
        ContextEvaluator(Split(tokens, tokens), BYTES, BLOCK, **options)


def test_a_model_with_a_smaller_vocabulary_and_ids_out_of_range_are_errors():
    tokens = np.full(9, V, np.int32)
    with pytest.raises(ConfigError, match="a model of 7 tokens cannot be evaluated on a text with a vocabulary of 8"):
        ContextEvaluator(Split(tokens, tokens), np.arange(1, V + 2), BLOCK)(MODEL)
    for wrong in (tokens, tokens.astype(np.int64) + 2**32 - V):  # which would be 0 as an int32
        with pytest.raises(TokenError, match=r"token id \d+ is outside"):
            ContextEvaluator(Split(wrong, wrong), BYTES, BLOCK)(MODEL)


def test_the_vocabulary_of_a_mixture_is_that_of_its_smallest_part():
    tokens = np.zeros(9, np.int32)
    narrow, wide = (Bigram(jnp.ones((size, size), jnp.int32)) for size in (V, V + 1))
    mixed = Mixture((narrow, wide), jnp.zeros((1, 2)))
    with pytest.raises(ConfigError, match="a model of 7 tokens cannot be evaluated on a text with a vocabulary of 8"):
        ContextEvaluator(Split(tokens, tokens), np.arange(1, V + 2), BLOCK)(mixed)


def test_what_is_not_scored_may_have_an_infinite_loss():
    tokens = np.arange(30, dtype=np.int32) % 3  # never the same twice, as in the padding
    model = Bigram.from_tokens(tokens, 3, smoothing=0.0)
    losses = ContextEvaluator(Split(tokens, tokens), np.ones(3, int), BLOCK)(model)
    assert losses["train"].nats == losses["val"].nats == 0
