"""Kneser-Ney is a distribution, equals its definition, and reaches the known losses."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax import CharTokenizer, split_tokens
from experiments.ladder.ngram import KneserNey

texts = st.lists(st.integers(0, 3), min_size=6, max_size=60).map(lambda ids: np.array(ids, np.int32))


@given(tokens=texts, order=st.integers(1, 5), context=st.lists(st.integers(0, 4), max_size=6))
def test_probabilities_after_any_context_sum_to_one(tokens, order, context):
    model = KneserNey(tokens, 5, order)  # token 4 is never seen
    probabilities = [np.exp(-model.nats(np.array([0, *context, token]))[-1]) for token in range(5)]
    assert min(probabilities) > 0
    assert sum(probabilities) == pytest.approx(1)


def by_definition(tokens, vocab_size, order, context, token):
    """p(token | context) of interpolated modified Kneser-Ney, by dictionaries and recursion."""
    grams = [tuple(tokens[i : i + n]) for n in range(1, order + 1) for i in range(len(tokens) - n + 1)]
    seen = Counter(grams)

    def counts(length):
        if length == order:
            return {gram: count for gram, count in seen.items() if len(gram) == length}
        return Counter(gram[1:] for gram in seen if len(gram) == length + 1)

    def probability(context, token):
        table = counts(len(context) + 1)
        lower = probability(context[1:], token) if context else 1 / vocab_size
        n = Counter(table.values())
        discount = [0.0, 0.5, 0.5, 0.5]
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            estimates = [0.0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
            discount = [min(max(d, 0.05), k - 0.05) if k else 0.0 for k, d in enumerate(estimates)]
        following = {gram[-1]: count for gram, count in table.items() if gram[:-1] == context}
        total = sum(following.values())
        if not total:
            return lower
        taken = {token: discount[min(count, 3)] for token, count in following.items()}
        kept = following.get(token, 0) - taken.get(token, 0)
        return (kept + sum(taken.values()) * lower) / total

    return probability(tuple(context)[len(context) - min(len(context), order - 1) :], token)


@given(tokens=texts, order=st.integers(1, 4), text=st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_it_equals_its_definition(tokens, order, text):
    nats = KneserNey(tokens, 4, order).nats(np.array(text))
    for position in range(1, len(text)):
        expected = by_definition(tokens.tolist(), 4, order, text[:position], text[position])
        assert np.exp(-nats[position - 1]) == pytest.approx(expected)


def test_tinyshakespeare_has_the_known_losses(tinyshakespeare):
    tokenizer = CharTokenizer.fit(tinyshakespeare.text)
    split = split_tokens(tokenizer.encode(tinyshakespeare.text))
    losses = [KneserNey(split.train, tokenizer.vocab_size, order).nats(split.val).mean() for order in (2, 4, 7)]
    assert losses == pytest.approx([2.484, 1.718, 1.5152], abs=2e-3)
