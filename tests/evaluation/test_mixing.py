"""Weights of a mixture are the best, and are judged on tokens they have not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax

from babyjax import Bigram, Mixture, PairCounts, Split, estimate_ngram, make_evaluator, token_nats
from babyjax.evaluation.mixing import MixtureEvaluator, cross_fitted, fit_gate, mixed_nats
from babyjax.models.mixture import FEATURES, features

V = 5
TOKENS = np.random.default_rng(0).choice(V, 4000, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.int32)
SPLIT, BYTES = Split(TOKENS[:3000], TOKENS[3000:]), np.arange(1, V + 1)
PARTS = (estimate_ngram(SPLIT.train, V, 3), Bigram.from_tokens(SPLIT.train, V, smoothing=50.0))


def losses(seed, tokens=400, parts=3):
    """Losses of parts on some tokens, and what is known before each."""
    rng = np.random.default_rng(seed)
    return rng.exponential(2, (tokens, parts)), rng.uniform(0, 1, (tokens, 3)) * [1, 4, 7]


@pytest.mark.parametrize("size", [1, FEATURES])
def test_the_gate_is_that_of_a_general_optimizer(size):
    nats, knowledge = losses(0)

    def loss(flat):
        gate = flat.reshape(size, 3)
        return mixed_nats(nats, knowledge, gate).sum() + (gate**2).sum() / 2

    best = minimize(loss, np.zeros(3 * size), method="BFGS").fun
    assert loss(fit_gate(nats, knowledge, size).ravel()) <= best + 1e-3


@given(seed=st.integers(0, 99), size=st.sampled_from([1, FEATURES]))
def test_a_mixture_is_no_worse_than_its_best_part(seed, size):
    nats, knowledge = losses(seed)
    nats += [0, 4, 4]
    mixed = mixed_nats(nats, knowledge, fit_gate(nats, knowledge, size)).mean()
    # With 5 for the first feature of that part and 0 for all others this is what the others and the prior cost.
    assert mixed <= nats.mean(axis=0).min() + np.log(1 + 2 * np.exp(-5)) + 5**2 / 2 / len(nats)


def test_a_gate_finds_which_part_is_better_where():
    """Of two parts the second is better by a nat where the context is long, and worse by a nat where it is short."""
    _, knowledge = losses(1, tokens=4000)
    better = knowledge[:, 2] > 3.5
    nats = np.stack([np.full(4000, 2.0), np.where(better, 1.0, 3.0)], axis=1)
    mixed = cross_fitted(nats, knowledge, FEATURES)
    assert mixed.mean() < 1.6 < cross_fitted(nats, knowledge, 1).mean()
    weights = softmax(features(knowledge) @ fit_gate(nats, knowledge, FEATURES), axis=1)
    assert weights[better, 1].mean() > 0.9 > 0.1 > weights[~better, 1].mean()


def test_what_is_known_may_be_one_number():
    """As of a 2-gram, where every context has one token, and a gate has many ways to say the same."""
    nats, knowledge = losses(4)
    knowledge = np.repeat(knowledge[:, :1], 3, axis=1).round()
    one, two = (mixed_nats(nats, knowledge, fit_gate(nats, knowledge, size)).mean() for size in (1, FEATURES))
    assert two < one < nats.mean(axis=0).min()


def test_tokens_that_no_part_thought_possible_say_nothing():
    nats, knowledge = losses(5)
    nats[:3] = np.inf
    nats[3:50, 0] = np.inf  # one part alone: it loses weight
    gate = fit_gate(nats, knowledge, FEATURES)
    np.testing.assert_array_equal(gate, fit_gate(nats[3:], knowledge[3:], FEATURES))
    mixed = mixed_nats(nats, knowledge, gate)
    assert np.isinf(mixed[:3]).all()
    assert np.isfinite(mixed[3:]).all()


def test_without_tokens_the_weights_are_equal():
    nats, knowledge = losses(1, tokens=0)
    np.testing.assert_array_equal(fit_gate(nats, knowledge, FEATURES), np.zeros((FEATURES, 3)))


def test_no_weight_is_judged_on_a_token_it_was_fitted_to():
    nats, knowledge = losses(2)
    judged = cross_fitted(nats, knowledge, FEATURES)
    changed = nats.copy()
    changed[:200] = losses(3)[0][:200]
    first, second = np.split(cross_fitted(changed, knowledge, FEATURES), 2)
    gate = fit_gate(nats[200:], knowledge[200:], FEATURES)
    np.testing.assert_array_equal(first, mixed_nats(changed[:200], knowledge[:200], gate))
    assert not np.allclose(second, judged[200:])


@pytest.mark.slow
def test_an_evaluator_cross_fits_the_validation_split_alone():
    evaluator = MixtureEvaluator(SPLIT, BYTES)
    nats, knowledge = evaluator.part_nats(PARTS)
    model = Mixture(PARTS, jnp.asarray(fit_gate(nats, knowledge, FEATURES), jnp.float32))
    found = make_evaluator(model, PairCounts.from_split(SPLIT, V), SPLIT, BYTES)(model)
    assert found["val"].per_token == pytest.approx(cross_fitted(nats, knowledge, FEATURES).mean())
    assert found["val"].tokens == 999
    assert found["val"].bytes == BYTES[SPLIT.val[1:]].sum()
    own = np.asarray(jax.jit(lambda tokens: model.nats(tokens[None])[0])(SPLIT.train))
    assert found["train"].per_token == pytest.approx(own.mean(), rel=1e-5)
    np.testing.assert_allclose(token_nats(model, SPLIT, BYTES, "train"), own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(token_nats(PARTS[0], SPLIT, BYTES, "val"), nats[:, 0])
    known = jax.jit(lambda tokens: PARTS[0].knowledge(tokens[None])[0, :-1])(SPLIT.val)
    np.testing.assert_allclose(knowledge, known, rtol=1e-5)
