"""A mixture is linear in probability, with weights by what the n-gram knows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, small

from babyjax import Mixture, estimate_ngram, generate
from babyjax.models.bigram import Bigram
from babyjax.models.ngram import CERTAINTIES

V, ORDER = 7, 3
TEXT = np.random.default_rng(0).integers(0, V, 200).astype(np.int32)
PARTS = (estimate_ngram(TEXT, V, ORDER), Bigram.from_tokens(TEXT, V))
WEIGHTS = np.random.default_rng(1).dirichlet([1, 1], CERTAINTIES).astype(np.float32)
TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, V, (2, 6)), jnp.int32)
evaluate = jax.jit(lambda model, tokens: (model(tokens), model.nats(tokens), model.certainty(tokens)))


@pytest.mark.slow
def test_probabilities_are_the_weighted_sum():
    logits, nats, certainty = evaluate(Mixture(PARTS, jnp.log(WEIGHTS)), TOKENS)
    first, second = (jax.nn.softmax(part(TOKENS)) for part in PARTS)
    weights = WEIGHTS[np.asarray(certainty)]
    expected = weights[..., :1] * first + weights[..., 1:] * second
    np.testing.assert_allclose(np.exp(logits), expected, rtol=1e-5)
    np.testing.assert_array_equal(certainty, PARTS[0].certainty(TOKENS))
    following = np.take_along_axis(expected[:, :-1], np.asarray(TOKENS)[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.exp(-nats), following, rtol=1e-5)


def test_one_row_of_weights_serves_every_context():
    model = Mixture(PARTS, jnp.log(WEIGHTS[:1]))
    same = Mixture(PARTS, jnp.log(np.repeat(WEIGHTS[:1], CERTAINTIES, axis=0)))
    chex.assert_trees_all_close(evaluate(model, TOKENS), evaluate(same, TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["counted", "with a network"])
def test_sampling_is_from_the_mixture(parts):
    network = filled(small("babygpt-v3-attention", block_size=8), V)
    model = Mixture(PARTS if parts == "counted" else (*PARTS[:1], network), jnp.log(WEIGHTS))
    limit = None if parts == "counted" else 8
    assert (model.max_length, model.decoder().capacity) == (limit, limit)
    tokens = np.asarray(generate(model, TOKENS[:, :2], jax.random.key(0), 5, temperature=0.0))
    text = np.concatenate([TOKENS[:, :2], tokens], axis=1)
    np.testing.assert_array_equal(tokens, np.argmax(evaluate(model, text)[0], axis=-1)[:, 1:-1])
