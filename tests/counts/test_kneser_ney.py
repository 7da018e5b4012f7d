"""Kneser-Ney is a distribution, equals its definition, static and adaptive, and reaches the known losses."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder import mostly_slow

from babyjax import CharTokenizer, estimate_ngram, split_tokens
from babyjax.counts import kneser_ney
from babyjax.counts.kneser_ney import (
    FALLBACK,
    choose_fitted,
    choose_order,
    discounts_of,
    evidence_of,
    fit_discounts,
    held_out,
    knowledge_at,
    losses_by_order,
    nats_at,
)
from babyjax.errors import ConfigError

V = 5  # token 4 is never seen
texts = st.lists(st.integers(0, 3), min_size=2, max_size=60).map(lambda ids: np.array(ids, np.int32))
short_texts = st.lists(st.integers(0, 4), min_size=2, max_size=12).map(lambda ids: np.array(ids, np.int32))
nats_of = jax.jit(lambda model, tokens: model.nats(tokens))
knowledge_of = jax.jit(lambda model, tokens: model.knowledge(tokens))


def text_nats(tokens, text, order, vocab_size=V, **options):
    return nats_at(evidence_of(tokens, text, vocab_size, order, **options), vocab_size)


def discounts_by_definition(counts):
    """Equation 26 of Chen & Goodman (1999)."""
    n = Counter(counts)
    if not (n[1] and n[2] and n[3]):
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    found = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else FALLBACK


def by_definition(texts, order, context, token):
    """p(token | context) of interpolated modified Kneser-Ney over separate texts, by dictionaries and recursion."""
    seen = Counter(
        tuple(text[i : i + n]) for text in texts for n in range(1, order + 1) for i in range(len(text) - n + 1)
    )

    def counts(length):
        if length == order:
            return {gram: count for gram, count in seen.items() if len(gram) == length}
        return Counter(gram[1:] for gram in seen if len(gram) == length + 1)

    def probability(context):
        table = counts(len(context) + 1)
        lower = probability(context[1:]) if context else 1 / V
        taken = [0, *discounts_by_definition(table.values())]
        following = {gram[-1]: count for gram, count in table.items() if gram[:-1] == context}
        total = sum(following.values())
        if not total:
            return lower
        kept = following.get(token, 0) - taken[min(following.get(token, 0), 3)]
        return (kept + sum(taken[min(count, 3)] for count in following.values()) * lower) / total

    return probability(tuple(context)[len(context) - min(len(context), order - 1) :])


@given(tokens=texts, order=st.integers(1, 5), text=short_texts)
def test_it_equals_its_definition(tokens, order, text):
    nats = text_nats(tokens, text, order)
    for place in range(1, len(text)):
        expected = by_definition([tokens.tolist()], order, text[:place].tolist(), text[place])
        assert np.exp(-nats[place - 1]) == pytest.approx(expected)


@given(tokens=texts, order=st.integers(1, 5), text=short_texts)
def test_adaptive_equals_counting_anew_before_every_token(tokens, order, text):
    nats = text_nats(tokens, text, order, adaptive=True)
    for place in range(1, len(text)):
        seen = text[:place].tolist()
        expected = by_definition([tokens.tolist(), seen], order, seen, text[place])
        assert np.exp(-nats[place - 1]) == pytest.approx(expected)


@given(tokens=texts, order=st.integers(1, 4), text=short_texts)
@settings(max_examples=5)  # each compiles
def test_the_model_gives_the_same_losses(tokens, order, text):
    model = estimate_ngram(tokens, V, order)
    np.testing.assert_allclose(nats_of(model, text[None])[0], text_nats(tokens, text, order), rtol=1e-4, atol=1e-6)
    evidence = evidence_of(tokens, text, V, order)
    found = np.asarray(knowledge_of(model, jnp.asarray(text)[None]))[0, :-1]
    # What begins `tokens` was there counted after no token.
    heads = [tokens[:length].tolist() for length in range(1, order)]
    other = [not any(text[: place + 1].tolist()[-len(head) :] == head for head in heads) for place in range(len(found))]
    np.testing.assert_allclose(found[other], knowledge_at(evidence)[other], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "tokens",
    [[0, 1], [2], [1] * 50, [0, 1, 2, 3] * 20, list(range(4)) * 2],
    ids=["two tokens", "one", "repeated", "periodic", "each twice"],
)
@pytest.mark.parametrize("order", mostly_slow([1, 3, 10], 3))
def test_odd_texts_give_a_distribution(tokens, order):
    model = estimate_ngram(np.array(tokens), V, order)
    rows = jax.jit(lambda model: model(jnp.array([[0, 1, 2, 3, 4, 4, 0, 1], [1] * 8])))(model)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.exp(rows).sum(axis=-1), 1, rtol=1e-5)


def test_a_vocabulary_of_one_is_certain():
    model = estimate_ngram(np.zeros(9, np.int32), 1, 3)
    logits = jax.jit(lambda tokens: model(tokens))(jnp.zeros((1, 4), jnp.int32))
    np.testing.assert_allclose(logits, 0, atol=1e-6)


def test_discounts_are_those_of_the_paper_or_the_fallback():
    assert discounts_of(np.array([40, 20, 10, 5])) == pytest.approx([0.5, 1.25, 2.0])
    np.testing.assert_array_equal(discounts_of(np.array([[0, 5, 5, 5], [10, 0, 3, 1], [1, 1, 9, 1]])), [FALLBACK] * 3)


def chain(length, seed=0):
    """A text of known structure: token 3 ends words of two kinds."""
    words = [[0, 1, 2, 3], [2, 0, 3], [1, 1, 3]]
    draws = np.random.default_rng(seed).choice(3, length, p=[0.6, 0.3, 0.1])
    return np.concatenate([words[draw] for draw in draws]).astype(np.int32)[:length]


def test_losses_by_order_are_those_of_each_order():
    tokens, text = held_out(chain(400))
    losses = losses_by_order(tokens, text, V)
    assert losses == pytest.approx([text_nats(tokens, text, order).mean() for order in range(1, 11)])
    assert choose_order(chain(400), V) == 1 + losses.argmin()
    assert choose_order(chain(400)[:9], V) == 2


@pytest.mark.parametrize("adaptive", [False, True])
def test_fitted_discounts_are_best_for_what_is_held_out(adaptive):
    tokens, text = held_out(chain(2000))
    fitted, loss = fit_discounts(chain(2000), V, 3, adaptive=adaptive)
    assert loss == pytest.approx(text_nats(tokens, text, 3, adaptive=adaptive, discounts=fitted).mean())
    assert loss <= text_nats(tokens, text, 3, adaptive=adaptive).mean() + 1e-9
    assert ((fitted > 0) & (fitted < [1, 2, 3])).all()
    longer, _ = choose_fitted(chain(2000), V)
    assert longer >= choose_order(chain(2000), V)


def test_discounts_of_ngrams_longer_than_what_is_held_out_are_the_fallback():
    fitted, loss = fit_discounts(chain(20), V, 4, adaptive=True)  # 2 tokens are held out
    assert fitted[2:] == pytest.approx(np.array([FALLBACK, FALLBACK]))
    assert np.isfinite(loss)


def test_the_gradient_of_the_discounts_is_that_of_finite_differences(rng):
    tokens, text = held_out(chain(300))
    evidence = evidence_of(tokens, text, V, 3)
    loss = partial(kneser_ney._loss_and_gradient, evidence, vocab_size=V)
    at, step = rng.uniform(0.2, 0.8, (3, 3)), 1e-6
    around = [
        (loss(at + step * unit)[0] - loss(at - step * unit)[0]) / (2 * step) for unit in np.eye(9).reshape(9, 3, 3)
    ]
    np.testing.assert_allclose(loss(at)[1].ravel(), around, atol=1e-8)


@pytest.mark.slow
def test_tinyshakespeare_reaches_the_known_losses(tinyshakespeare):
    tokenizer = CharTokenizer.fit(tinyshakespeare.text)
    split = split_tokens(tokenizer.encode(tinyshakespeare.text))
    nats = partial(text_nats, *split, vocab_size=tokenizer.vocab_size)
    assert [nats(order=order).mean() for order in (2, 4, 7)] == pytest.approx([2.4835, 1.7190, 1.5165], abs=5e-5)
    assert nats(order=7, adaptive=True).mean() == pytest.approx(1.4072, abs=5e-5)
    assert choose_order(split.train, tokenizer.vocab_size) == 7


@pytest.mark.parametrize("order", [-1, 0, 11])
def test_an_order_that_cannot_be_is_refused(order):
    with pytest.raises(ConfigError, match=rf"order={order} must lie in \[1, 10\]"):
        estimate_ngram(chain(9), V, order)
