"""A mixture is linear in probability, with weights by what the n-gram knows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, small

from babyjax import Mixture, estimate_ngram, generate
from babyjax.errors import ConfigError
from babyjax.models.base import NOTHING_KNOWN, LanguageModel
from babyjax.models.bigram import Bigram
from babyjax.models.mixture import FEATURES, features, most_known

V, ORDER = 7, 3
TEXT = np.random.default_rng(0).integers(0, V, 200).astype(np.int32)
PARTS = (estimate_ngram(TEXT, V, ORDER), Bigram.from_tokens(TEXT, V))
GATE = jnp.asarray(np.random.default_rng(1).normal(size=(FEATURES, 2)), jnp.float32)
TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, V, (2, 6)), jnp.int32)
evaluate = jax.jit(lambda model, tokens: (model(tokens), model.nats(tokens), model.knowledge(tokens)))


class Bounded(LanguageModel):
    """Three tokens back, with the default decoder."""

    vocab_size = V

    @property
    def context_length(self):
        return 3

    def __call__(self, tokens, *, key=None):
        before = [jnp.pad(tokens, ((0, 0), (back, 0)))[:, : tokens.shape[1]] * (back + 1) for back in range(3)]
        return jnp.sin(jnp.stack(before).sum(axis=0)[..., None] * (1.0 + jnp.arange(V)))


knowledge_of = jax.jit(lambda model, tokens: model.knowledge(tokens))


@pytest.mark.slow
def test_probabilities_are_the_weighted_sum():
    logits, nats, knowledge = evaluate(Mixture(PARTS, GATE), TOKENS)
    first, second = (np.asarray(jax.nn.softmax(evaluate(part, TOKENS)[0])) for part in PARTS)
    weights = np.asarray(jax.nn.softmax(features(np.asarray(knowledge)) @ GATE))
    assert np.ptp(weights) > 0.5
    expected = weights[..., :1] * first + weights[..., 1:] * second
    np.testing.assert_allclose(np.exp(logits), expected, rtol=1e-5)
    np.testing.assert_allclose(knowledge, PARTS[0].knowledge(TOKENS), rtol=1e-5)
    following = np.take_along_axis(expected[:, :-1], np.asarray(TOKENS)[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.exp(-nats), following, rtol=1e-5)


def test_a_mixture_says_what_it_is():
    network, rounded = (filled(small("babygpt", dtype=dtype), V) for dtype in ("float32", "bfloat16"))
    assert [(part.parts, part.gate_size) for part in (network, *PARTS)] == [((), 0)] * 3
    mixed = Mixture((network, *PARTS), jnp.zeros((FEATURES, 3)))
    assert (mixed.parts, mixed.gate_size) == ([network, *PARTS], FEATURES)
    models = network, rounded, mixed, Mixture((PARTS[0], rounded), GATE)
    assert [model.low_precision for model in models] == [False, True, False, True]
    assert [model.normalized for model in (network, *PARTS, mixed)] == [False, True, True, True]
    for model in (*PARTS, mixed):
        np.testing.assert_allclose(np.exp(evaluate(model, TOKENS)[0]).sum(axis=-1), 1, rtol=1e-5)


def test_parts_with_room_for_different_numbers_of_tokens_are_one_distribution():
    wide = Bigram.from_tokens(np.arange(V + 3, dtype=np.int32), V + 3)
    mixed = Mixture((PARTS[0], wide), GATE)
    logits, nats, _ = evaluate(mixed, TOKENS)
    assert mixed.vocab_size == V + 3
    np.testing.assert_allclose(np.exp(logits).sum(axis=-1), 1, rtol=1e-5)
    chosen = np.take_along_axis(np.asarray(logits)[:, :-1], np.asarray(TOKENS)[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, -chosen, rtol=1e-5)
    beyond = TOKENS.at[0, 2].set(V)  # which the n-gram does not have
    _, nats, _ = evaluate(mixed, beyond)
    logits_before = np.asarray(evaluate(mixed, TOKENS)[0])[0, 1]
    np.testing.assert_allclose(nats[0, 1], -logits_before[V], rtol=1e-5)
    assert np.isfinite(nats).all()
    new = np.asarray(logits)[..., V:] - np.asarray(jax.nn.log_softmax(wide(TOKENS)))[..., V:]
    np.testing.assert_allclose(new, np.broadcast_to(new[..., :1], new.shape), atol=1e-5)  # the weight of the wide part


def test_a_gate_has_a_column_for_each_part():
    for parts in ((), PARTS[:1]):
        with pytest.raises(ConfigError, match=f"a gate of shape .*, 2. does not give weights to {len(parts)} models"):
            Mixture(parts, GATE)


def test_a_part_that_holds_less_than_another_reads_the_end_of_a_prompt():
    mixed = Mixture((Bounded(), estimate_ngram(TEXT, V, 6)), jnp.zeros((1, 2)))
    prompts = np.arange(16, dtype=np.int32).reshape(2, 8) % V
    longer = np.concatenate([prompts[::-1], prompts], axis=1)
    key = jax.random.key(0)
    np.testing.assert_array_equal(generate(mixed, prompts, key, 5), generate(mixed, longer, key, 5))


def test_features_are_one_the_numbers_and_their_products():
    knowledge = np.random.default_rng(3).normal(size=(4, 3))
    a, b, c = knowledge.T
    expected = np.stack([np.ones(4), a, b, c, a * a, a * b, a * c, b * b, b * c, c * c], axis=1)
    np.testing.assert_array_equal(features(knowledge), expected)
    assert expected.shape[1] == FEATURES


def test_the_longest_context_is_what_is_known_of():
    network, empty = np.zeros(3), np.array(NOTHING_KNOWN)
    short, long = np.array([0.1, 2.0, 1.0]), np.array([0.9, 1.0, 2.0])
    for every, expected in (([network, empty], empty), ([empty, short, network], short), ([short, long, empty], long)):
        np.testing.assert_array_equal(most_known(every), expected)
    both = (*PARTS, estimate_ngram(TEXT, V, ORDER + 1))
    known = knowledge_of(Mixture(both, GATE[:, [0, 1, 1]]), TOKENS)
    np.testing.assert_array_equal(known[..., 2], knowledge_of(both[2], TOKENS)[..., 2])


def test_a_gate_of_one_row_has_the_same_weights_everywhere():
    model = Mixture(PARTS, GATE[:1])
    same = Mixture(PARTS, GATE.at[1:].set(0))
    chex.assert_trees_all_close(evaluate(model, TOKENS), evaluate(same, TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["counted", "with a network"])
def test_sampling_is_from_the_mixture(parts):
    network = filled(small("babygpt-v3-attention", block_size=8), V)
    model = Mixture(PARTS if parts == "counted" else (*PARTS[:1], network), GATE)
    limit = None if parts == "counted" else 8
    assert (model.max_length, model.decoder().capacity) == (limit, limit)
    tokens = np.asarray(generate(model, TOKENS[:, :2], jax.random.key(0), 5, temperature=0.0))
    text = np.concatenate([TOKENS[:, :2], tokens], axis=1)
    np.testing.assert_array_equal(tokens, np.argmax(evaluate(model, text)[0], axis=-1)[:, 1:-1])
