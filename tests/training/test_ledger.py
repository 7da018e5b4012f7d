"""The ledger: four terms that add up, none of them guessed."""

import jax
import numpy as np
import pytest

from babyjax import BabyGPT, ExactEvaluator, PairCounts, Split, fit_counts
from babyjax.training.ledger import draw_up_ledger

V = 8


@pytest.fixture
def pairs(rng) -> PairCounts:
    rows = rng.dirichlet(np.full(V, 0.3), size=V)
    tokens = [0]
    for _ in range(2000):
        tokens.append(rng.choice(V, p=rows[tokens[-1]]))
    return PairCounts.from_split(Split(np.array(tokens[:1800], np.int32), np.array(tokens[1800:], np.int32)), V)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [0, 3, V - 1, 2 * V])
def test_the_terms_add_up_and_the_best_is_the_best(pairs, width, bias):
    model = BabyGPT(V, width, bias=bias, key=jax.random.key(0))
    losses = ExactEvaluator(pairs, np.ones(V, int))(model)
    ledger = draw_up_ledger(pairs, model, losses)
    assert ledger is not None
    entropy, approximation, optimisation, generalisation, _ = ledger
    assert entropy == pytest.approx(pairs.entropy("train"))
    assert entropy + approximation + optimisation == pytest.approx(losses["train"].per_token)
    assert losses["train"].per_token + generalisation == pytest.approx(losses["val"].per_token)
    assert approximation >= 0
    assert optimisation > 0.1 or (width == 0 and not bias)  # untrained
    if width >= V - 1:
        assert approximation == 0
    else:
        assert entropy + approximation <= fit_counts(pairs, width, bias=bias).objective + 1e-6
        most = fit_counts(pairs, width, bias=bias, starts=20).objective
        assert entropy + approximation >= most - 1e-3


def test_a_model_that_is_the_best_is_the_best(pairs):
    model = fit_counts(pairs, 3, starts=30, seed=100, tolerance=1e-8).model
    ledger = draw_up_ledger(pairs, model, ExactEvaluator(pairs, np.ones(V, int))(model))
    assert ledger is not None
    assert 0 <= ledger.optimisation < 1e-5


def test_an_interrupted_ledger_is_none(pairs):
    model = BabyGPT(V, 3, key=jax.random.key(0))
    assert draw_up_ledger(pairs, model, ExactEvaluator(pairs, np.ones(V, int))(model), [2]) is None
