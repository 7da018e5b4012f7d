"""Markov sources: their surprise is that of their table, and every state of the context tells something."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.data.markov import ENTRIES, MarkovSource
from babyjax.errors import DataError


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 9))
def test_nats_are_those_of_the_row_of_each_context(states, order, length, seed):
    source = MarkovSource.random(np.random.default_rng(seed), states, order)
    path = np.random.default_rng(seed).integers(0, states, length)
    expected = []
    for position, state in enumerate(path):
        context = [*[0] * order, *path[:position]][-order:]
        row = source.table[int("".join(map(str, context)), states) if states > 1 else 0]
        expected.append((row == state).sum() / ENTRIES)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(source.nats(path), -np.log(expected))


def test_a_path_costs_the_entropy_rate():
    source = MarkovSource.random(np.random.default_rng(1), 5, 3)
    nats = source.nats(source.draw(np.random.default_rng(2), 100_000))
    assert nats.mean() == pytest.approx(source.entropy_rate, abs=5 * nats.std() / 100_000**0.5)


def test_older_states_tell_something_too():
    source = MarkovSource.random(np.random.default_rng(0), 4, 3)
    rows = source.probabilities.reshape(4, 16, 4)
    apart = abs(rows - rows.mean(axis=0)).mean()
    assert abs(rows.mean(axis=0) - rows.mean(axis=(0, 1))).mean() > apart / 2 > 0.02


@given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 99))
def test_no_source_of_higher_order_ends_in_one_state(states, order, seed):
    assert MarkovSource.random(np.random.default_rng(seed), states, order).entropy_rate > 0.05


def test_too_many_contexts_are_refused():
    with pytest.raises(DataError, match="32,769 contexts"):
        MarkovSource.random(np.random.default_rng(0), 32_769, 1)
