"""Adaptive losses are those of counting on, for every model that counts and for mixtures with one."""

import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, small

from babyjax import Bigram, Mixture, Split, adaptive_nats, estimate_ngram, load_config
from babyjax.counts.kneser_ney import evidence_of, fit_discounts, knowledge_at, nats_at
from babyjax.errors import ConfigError
from babyjax.evaluation.mixing import MixtureEvaluator, cross_fitted
from babyjax.models.mixture import FEATURES

V = 5
TOKENS = np.random.default_rng(0).choice(V, 600, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.int32)
SPLIT, BYTES = Split(TOKENS[:500], TOKENS[500:]), np.ones(V, np.int64)
NGRAM = load_config(["model=ngram", "model.order=3"])


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_a_bigram_counts_on(smoothing):
    config = load_config(["model=bigram", f"model.smoothing={smoothing}"])
    nats = adaptive_nats(config, Bigram.from_tokens(SPLIT.train, V, smoothing), (), SPLIT, BYTES)
    for place in range(1, len(SPLIT.val)):
        row = Bigram.from_tokens(SPLIT.train, V).counts[...][SPLIT.val[place - 1]] + smoothing
        for before, token in zip(SPLIT.val[: place - 1], SPLIT.val[1:place], strict=True):
            row = row.at[token].add(before == SPLIT.val[place - 1])
        assert np.exp(-nats[place - 1]) == pytest.approx(float(row[SPLIT.val[place]] / row.sum()), rel=1e-5)
        if place == 12:
            break


def test_a_bigram_without_counts_begins_uniform():
    config, model = load_config(["model=bigram", "model.smoothing=0"]), Bigram(jnp.zeros((V, V), jnp.int32), 0.0)
    nats = adaptive_nats(config, model, (), Split(TOKENS, np.array([0, 1, 0, 1])), BYTES)
    np.testing.assert_allclose(np.exp(-nats), [1 / V, 1 / V, 1])


@pytest.mark.parametrize("discounts", ["published", "fitted"])
def test_an_ngram_counts_on(discounts):
    config = load_config(["model=ngram", "model.order=3", f"model.discounts={discounts}"])
    fitted = fit_discounts(SPLIT.train, V, 3, adaptive=True)[0] if discounts == "fitted" else None
    expected = nats_at(evidence_of(*SPLIT, V, 3, adaptive=True, discounts=fitted), V)
    model = estimate_ngram(SPLIT.train, V, 3)
    np.testing.assert_array_equal(adaptive_nats(config, model, (), SPLIT, BYTES), expected)


@pytest.mark.parametrize("stride", [None, 3])
def test_the_counting_parts_of_a_mixture_count_on_and_others_have_the_stride(stride):
    network = load_config(["model=babygpt-v3-attention"])
    parts = (estimate_ngram(SPLIT.train, V, 3), filled(small("babygpt-v3-attention", block_size=8), V))
    mixture = load_config(["model=mixture", "model.parts=a,b"])
    model = Mixture(parts, jnp.zeros((FEATURES, 2)))
    evidence = evidence_of(*SPLIT, V, 3, adaptive=True)
    static = MixtureEvaluator(SPLIT, BYTES, stride).part_nats(parts)[0][:, 1]
    expected = cross_fitted(np.stack([nats_at(evidence, V), static], axis=1), knowledge_at(evidence), FEATURES)
    nats = adaptive_nats(mixture, model, (NGRAM, network), SPLIT, BYTES, stride)
    np.testing.assert_array_equal(nats, expected)
    with pytest.raises(ConfigError, match="not for model=mixture"):
        adaptive_nats(mixture, model, (network, network), SPLIT, BYTES)
    with pytest.raises(ConfigError, match="not for model=babygpt-v3-attention"):
        adaptive_nats(network, parts[1], (), SPLIT, BYTES)


def test_what_came_from_an_arpa_file_was_not_counted():
    config = load_config(["model=ngram", "model.arpa=x.arpa"])
    with pytest.raises(ConfigError, match="not for model=ngram from an ARPA file"):
        adaptive_nats(config, estimate_ngram(SPLIT.train, V, 3), (), SPLIT, BYTES)
