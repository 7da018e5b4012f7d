"""The decomposition of a loss: four terms that add up, none of them guessed."""

import numpy as np
import pytest
from chains import V, random_pairs
from ladder import filled, mostly_slow

from babyjax import BabyGPTConfig, ExactEvaluator, decompose, fit_counts

PAIRS = random_pairs()
EVALUATE = ExactEvaluator(PAIRS, np.ones(V, int))


@pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", mostly_slow([0, 3, V - 1, 2 * V], 0))
def test_the_terms_add_up_and_the_best_is_the_best(width, bias):
    model = filled(BabyGPTConfig(n_embd=width, head_bias=bias), V)
    losses = EVALUATE(model)
    terms = decompose(PAIRS, model, losses)
    assert terms is not None
    entropy, approximation, optimization, generalization, _ = terms
    assert entropy == pytest.approx(PAIRS.entropy("train"))
    assert entropy + approximation + optimization == pytest.approx(losses["train"].per_token)
    assert losses["train"].per_token + generalization == pytest.approx(losses["val"].per_token)
    assert approximation >= 0
    assert optimization > 0.1 or (width == 0 and not bias)  # untrained
    if width >= V - 1:
        assert approximation == 0
    else:
        assert entropy + approximation <= fit_counts(PAIRS, width, bias=bias).objective + 1e-6
        most = fit_counts(PAIRS, width, bias=bias, starts=20).objective
        assert entropy + approximation >= most - 1e-3


@pytest.mark.slow
def test_a_model_that_is_the_best_is_the_best():
    model = fit_counts(PAIRS, 3, starts=30, seed=100, tolerance=1e-8).model
    terms = decompose(PAIRS, model, EVALUATE(model))
    assert terms is not None
    assert 0 <= terms.optimization < 1e-5


def test_a_decomposition_that_is_stopped_is_none():
    model = filled(BabyGPTConfig(n_embd=3), V)
    losses = EVALUATE(model)
    assert decompose(PAIRS, model, losses, lambda: True) is None
