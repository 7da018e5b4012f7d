"""Weights of a mixture are the best, and are judged on tokens they have not seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from babyjax import Bigram, Mixture, PairCounts, Split, estimate_ngram, make_evaluator, token_nats
from babyjax.evaluation.mixing import MixtureEvaluator, cross_fitted, fit_weights, mixed_nats
from babyjax.models.ngram import CERTAINTIES

V = 5
TOKENS = np.random.default_rng(0).choice(V, 4000, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.int32)
SPLIT, BYTES = Split(TOKENS[:3000], TOKENS[3000:]), np.arange(1, V + 1)
PARTS = (estimate_ngram(SPLIT.train, V, 3), Bigram.from_tokens(SPLIT.train, V, smoothing=50.0))


def losses(seed, tokens=400, parts=3):
    rng = np.random.default_rng(seed)
    return rng.exponential(2, (tokens, parts)), rng.integers(0, 3, tokens)


def test_the_weights_are_those_of_a_general_optimizer():
    nats, kind = losses(0)
    shared = 3 * np.exp(fit_weights(nats, kind, 1)[0])
    for level, log_weights in enumerate(fit_weights(nats, kind, 3)):
        mine = nats[kind == level]

        def loss(logits, mine=mine):
            log_weights = logits - np.logaddexp.reduce(logits)
            return mixed_nats(mine, np.zeros(len(mine), int), log_weights[None]).sum() - log_weights @ shared

        best = minimize(loss, np.zeros(3)).fun
        assert loss(log_weights) <= best + 1e-3


@given(seed=st.integers(0, 99), classes=st.integers(1, 4))
def test_a_mixture_is_no_worse_than_its_best_part(seed, classes):
    nats, kind = losses(seed)
    log_weights = fit_weights(nats, kind, classes)
    np.testing.assert_allclose(np.exp(log_weights).sum(axis=1), 1)
    prior = 3 * classes * np.log(1000) / len(nats)  # as many more tokens per class as parts
    assert mixed_nats(nats, kind, log_weights).mean() <= nats.mean(axis=0).min() + prior


def test_a_class_without_tokens_has_the_weights_of_all_tokens():
    nats, _ = losses(1)
    kind = np.zeros(400, int)
    np.testing.assert_allclose(fit_weights(nats, kind, 2)[1], fit_weights(nats, kind, 1)[0])


def test_no_weight_is_judged_on_a_token_it_was_fitted_to():
    nats, kind = losses(2)
    judged = cross_fitted(nats, kind, 3)
    changed = nats.copy()
    changed[:200] = losses(3)[0][:200]
    first, second = np.split(cross_fitted(changed, kind, 3), 2)
    np.testing.assert_array_equal(first, mixed_nats(changed[:200], kind[:200], fit_weights(nats[200:], kind[200:], 3)))
    assert not np.allclose(second, judged[200:])


@pytest.mark.slow
def test_an_evaluator_cross_fits_the_validation_split_alone():
    evaluator = MixtureEvaluator(SPLIT, BYTES)
    nats, kind = evaluator.part_nats(PARTS)
    log_weights = fit_weights(nats, kind, CERTAINTIES)
    model = Mixture(PARTS, jnp.asarray(log_weights, jnp.float32))
    found = make_evaluator(model, PairCounts.from_split(SPLIT, V), SPLIT, BYTES)(model)
    assert found["val"].per_token == pytest.approx(cross_fitted(nats, kind, CERTAINTIES).mean())
    assert found["val"].tokens == 999
    assert found["val"].bytes == BYTES[SPLIT.val[1:]].sum()
    own = np.concatenate([np.asarray(model.nats(jnp.asarray(SPLIT.train)[None]))[0]])
    assert found["train"].per_token == pytest.approx(own.mean(), rel=1e-5)
    np.testing.assert_allclose(token_nats(model, SPLIT, BYTES, "train"), own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(token_nats(PARTS[0], SPLIT, BYTES, "val"), nats[:, 0])
    np.testing.assert_array_equal(kind, PARTS[0].certainty(jnp.asarray(SPLIT.val)[None])[0, :-1])
