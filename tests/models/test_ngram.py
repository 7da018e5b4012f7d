"""The trie gives the right n-gram, whatever its shape, under every transformation, and decodes from its nodes alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder import mostly_slow

from babyjax import NGram, estimate_ngram, generate
from babyjax.models import ngram
from babyjax.models.base import NOTHING_KNOWN

V = 150  # more children than are read at once
TEXT = np.random.default_rng(0).zipf(1.3, 3000).clip(max=V - 1).astype(np.int32)
MODEL = estimate_ngram(TEXT, V, 4)
logits_of = jax.jit(lambda model, tokens: model(tokens))
nats_of = jax.jit(lambda model, tokens: model.nats(tokens))
windows = st.lists(st.integers(0, V - 1), min_size=2, max_size=6)


def grams(model):
    """Log-probability and backoff of each n-gram, by a walk through the trie."""
    found, last, first = {}, np.asarray(model.last[...]), np.asarray(model.first_child[...])
    log_p, log_b = np.asarray(model.log_probability[...]), np.asarray(model.log_backoff[...])

    def walk(node, gram):
        if gram:
            found[gram] = (log_p[node], log_b[node] if node < len(log_b) else 0.0)
        if node < len(log_b):
            for child in range(first[node], first[node + 1]):
                walk(child, (*gram, int(last[child])))

    walk(0, ())
    return found


GRAMS = grams(MODEL)


def by_backoff(context, token):
    """Katz's recursion over the dictionary."""
    context = tuple(context)[-3:] if context else ()
    if (*context, token) in GRAMS:
        return GRAMS[(*context, token)][0]
    return GRAMS.get(context, (0, 0.0))[1] + by_backoff(context[1:], token)


def test_the_trie_holds_the_ngrams_of_the_text():
    there = {tuple(TEXT[i : i + n].tolist()) for n in range(2, 5) for i in range(len(TEXT) - n + 1)}
    assert set(GRAMS) == there | {(token,) for token in range(V)}
    assert [level.stop - level.start for level in MODEL.levels()] == [
        sum(len(gram) == n for gram in GRAMS) for n in range(1, 5)
    ]
    assert MODEL.size == len(GRAMS)


@given(text=windows)
def test_logits_and_nats_are_those_of_the_recursion(text):
    text = text + [0] * (6 - len(text))
    tokens = jnp.array([text])
    logits = logits_of(MODEL, tokens)[0]
    expected = [[by_backoff(text[: place + 1], token) for token in range(V)] for place in range(len(text))]
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    np.testing.assert_allclose(np.exp(logits).sum(axis=-1), 1, rtol=1e-5)
    targets = [expected[place][token] for place, token in enumerate(text[1:])]
    np.testing.assert_allclose(nats_of(MODEL, tokens)[0], -np.array(targets), atol=2e-5)


def test_knowledge_is_of_the_longest_context_that_any_token_has_followed():
    def expected(context):
        if not context:
            return NOTHING_KNOWN
        followers = sum(gram[:-1] == context for gram in GRAMS)
        if not followers:
            return expected(context[1:])
        return np.exp(GRAMS[context][1]), np.log(followers), len(context)

    tokens = np.append(TEXT[100:108], [V - 1, V - 1, V - 1])
    contexts = [tuple(tokens[: place + 1][-3:].tolist()) for place in range(len(tokens))]
    found = jax.jit(lambda tokens: MODEL.knowledge(tokens[None])[0])(jnp.asarray(tokens))
    np.testing.assert_allclose(found, list(map(expected, contexts)), rtol=1e-5, atol=1e-6)
    assert len(set(found[:, 2].tolist())) > 2


@pytest.mark.parametrize("children", mostly_slow([1, 7, 1000], 7))
def test_any_number_of_children_at_once_gives_the_same(children, monkeypatch):
    monkeypatch.setattr(ngram, "CHILDREN", children)
    tokens = jnp.asarray(TEXT[None, :5])
    chex.assert_trees_all_close(jax.jit(lambda model: model(tokens))(MODEL), logits_of(MODEL, tokens), atol=1e-6)


def test_models_are_mapped_over():
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), MODEL, MODEL)
    tokens = jnp.asarray(TEXT[:12].reshape(2, 2, 3))
    mapped = jax.jit(jax.vmap(lambda model, tokens: model(tokens)))(models, tokens)
    chex.assert_trees_all_close(mapped, jnp.stack([logits_of(MODEL, each) for each in tokens]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 4])
def test_sampling_never_rereads_the_context(order):
    model = estimate_ngram(TEXT, V, order)
    tokens = np.asarray(generate(model, [TEXT[:3], TEXT[:1]], jax.random.key(0), 40, temperature=0.0))
    text = np.concatenate([TEXT[:3], tokens[0]])
    greedy = np.argmax(logits_of(model, text[None])[0, 2:-1], axis=-1)
    np.testing.assert_array_equal(tokens[0], greedy)
    assert jax.eval_shape(lambda: model.decoder().init_cache(7)).shape == (7, order - 1)


def test_an_untrained_model_is_only_a_structure():
    model = NGram.untrained(V)
    assert (model.size, model.order, model.context_length) == (0, 10, 9)
    chex.assert_trees_all_equal_structs(model, MODEL)
