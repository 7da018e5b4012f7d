import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import ttest_1samp, ttest_ind

from babyjax.evaluation.comparison import Difference, Interval, Scored, Side, common_edges, judge, t_quantile
from babyjax.evaluation.losses import Nats

UNITS = np.full(20, 5000)


def side(losses, seeds=None, text_noise=0.0, seed=0, **fields):
    """A side whose runs have these losses per token, on 20 segments."""
    noise = np.random.default_rng(seed).normal(0, text_noise, 20)
    nats = np.array([(loss + noise - noise.mean()) * UNITS for loss in losses])
    return Side(nats, tuple(range(len(losses)) if seeds is None else seeds), **fields)


def known(value: float | None) -> float:
    assert value is not None
    return value


def verdict(a, b, **options):
    seeds = min(len(a.seeds), len(b.seeds))
    return judge(Difference.between(a, b, UNITS), "nats per token", seeds=seeds, **options)


def test_an_interval_is_students():
    values = [1.0, 1.2, 0.9, 1.3]
    found, expected = Interval.of(values), ttest_1samp(values, 0).confidence_interval()
    assert (found.mean - known(found.error), found.mean + known(found.error)) == pytest.approx(tuple(expected))
    assert Interval.of([2.0]) == (2.0, None, None)


@pytest.mark.parametrize("paired", [True, False])
def test_the_error_of_seeds_is_that_of_the_t_tests(paired):
    a, b = [1.0, 1.2, 0.9, 1.3], [1.1, 1.15, 1.2, 1.4]
    found = Difference.between(side(a), side(b, None if paired else (5, 6, 7, 8)), UNITS)
    if paired:
        expected = ttest_1samp(np.subtract(b, a), 0).confidence_interval()
    else:
        expected = ttest_ind(b, a, equal_var=False).confidence_interval()
    assert found.paired == paired
    assert t_quantile(found.seed_degrees) * known(found.of_seeds) == pytest.approx((expected.high - expected.low) / 2)
    assert found.half_width() == pytest.approx((expected.high - expected.low) / 2)  # the segments are all alike


def test_text_and_seeds_add_up_in_squares():
    found = Difference.between(side([1.0, 1.1, 1.2]), side([1.2, 1.1, 1.3], text_noise=0.1), UNITS)
    assert known(found.of_text) > 0.01
    total = math.hypot(known(found.of_text), known(found.of_seeds))
    assert t_quantile(2) * total > known(found.half_width()) > t_quantile(21) * total


@given(st.floats(0.001, 0.1), st.floats(0.0001, 0.02), st.booleans(), st.integers(2, 6), st.integers(0, 99))
def test_a_difference_is_called_one_exactly_if_zero_is_outside_the_interval(gap, spread, swap, seeds, seed):
    rng = np.random.default_rng(seed)
    a, b = side(rng.normal(1, spread, seeds)), side(rng.normal(1 + gap, spread, seeds), text_noise=spread, seed=seed)
    a, b = (b, a) if swap else (a, b)
    difference, found = Difference.between(a, b, UNITS), verdict(a, b)
    outside = abs(difference.mean) > known(difference.half_width())
    assert found.better == (("B" if difference.mean < 0 else "A") if outside else None)
    assert found.words.startswith(f"{found.better} is better by " if outside else "not distinguishable")


def test_verdicts_in_both_directions_and_neither():
    low, high = side([1.0, 1.001, 1.002]), side([1.1, 1.101, 1.104])
    assert verdict(low, high).words.startswith("A is better by 0.1007 +- ")
    assert verdict(high, low).better == "B"
    assert verdict(low, low).words == "not distinguishable: 0.0000 +- 0.0000 nats per token (95 %)"
    assert verdict(high, low, names=("C", "D")).better == "D"


def test_one_seed_says_which_model_is_better_but_not_which_recipe():
    found = verdict(side([1.0]), side([1.1], text_noise=0.01))
    assert found.better == "A"
    assert "one seed says little about the recipe" in found.words
    assert verdict(side([1.0]), side([1.001], text_noise=0.1)).better is None


def test_counting_has_no_seed():
    counted, trained = side([1.0], seeded=False), side([1.1, 1.11, 1.12, 1.1], text_noise=0.01)
    found = Difference.between(counted, trained, UNITS)
    expected = ttest_1samp([1.1, 1.11, 1.12, 1.1], 1.0).confidence_interval()
    assert t_quantile(found.seed_degrees) * known(found.of_seeds) == pytest.approx((expected.high - expected.low) / 2)
    assert verdict(counted, trained).words.startswith("A is better by")
    assert "seed" not in verdict(counted, side([1.1], seeded=False)).words


def test_runs_of_one_recipe_are_not_distinguishable():
    found = verdict(side([1.0], (0,)), side([1.1], (1,), text_noise=0.01), same_recipe=True)
    assert found.better is None
    assert "differ only in their seed" in found.words


def test_an_infinite_loss_is_worse_than_any_other():
    finite, infinite = side([1.0] * 2), side([1.0] * 2)._replace(nats=np.full((2, len(UNITS)), np.inf))
    assert verdict(finite, infinite) == ("A", "A is better: the loss of B is infinite or NaN")
    assert verdict(infinite, finite) == ("B", "B is better: the loss of A is infinite or NaN")
    assert verdict(infinite, infinite) == (None, "not distinguishable: both losses are infinite or NaN")
    one = side([1.0])
    assert verdict(infinite, one).words.startswith(
        "this model of B is better: the loss of A is infinite or NaN; one seed"
    )
    found = verdict(infinite, finite, same_recipe=True)
    assert found == (None, "not distinguishable: they differ only in their seed (the loss of A is infinite or NaN)")


@given(st.floats(0.002, 0.02), st.integers(2, 5), st.booleans())
def test_the_number_of_seeds_that_is_named_suffices(spread, seeds, paired):
    losses = 1 + spread * np.linspace(-1, 1, seeds)
    found = Difference.between(side(losses), side(losses[::-1], None if paired else range(9, 9 + seeds)), UNITS)
    needed = found.seeds_for(0.005)
    assert needed is not None
    for count, fits in ((needed, True), (needed - 1, False)):
        degrees = (1 if paired else 2) * (count - 1)
        if count > 1:
            assert (t_quantile(degrees) * found.spread / math.sqrt(count) <= 0.005) == fits


def test_what_would_resolve_a_difference_is_said():
    noisy = [1.0, 1.02, 0.98]
    assert "more seeds would resolve 0.005" in verdict(side(noisy), side(noisy[::-1])).words
    assert verdict(side(noisy), side(noisy[::-1]), resolution=1.0).words.endswith("(95 %)")
    longer = verdict(side(noisy), side(noisy, text_noise=0.1)).words
    assert longer.endswith("only a longer text would resolve 0.005 nats per token")
    short = Difference.between(Side(np.ones((1, 1)), (0,)), Side(np.ones((1, 1)), (0,)), np.array([9]))
    assert "too short" in judge(short, "nats per token").words


def test_losses_of_other_tokens_are_compared_by_bytes():
    pairs = Scored(np.array([2.0, 4.0, 6.0]), np.array([12, 14, 16]), 10)
    single = Scored(np.arange(1.0, 6.0), np.array([12, 13, 14, 15, 16]), 11)
    edges = common_edges([single, pairs])
    assert (edges[0], edges[-1]) == (11, 16)
    np.testing.assert_allclose(single.segments(edges).sum(), 15)
    np.testing.assert_allclose(pairs.segments(edges).sum(), 11)  # half of the first token


@given(st.integers(0, 2**32), st.integers(2, 40000), st.integers(1, 4))
def test_segments_lose_nothing(seed, tokens, longest):
    rng = np.random.default_rng(seed)
    ends = 7 + np.cumsum(rng.integers(1, longest + 1, tokens))
    scored = Scored(rng.random(tokens), ends, 7)
    edges = common_edges([scored])
    np.testing.assert_allclose(scored.segments(edges).sum(), scored.nats.sum())
    assert len(edges) - 1 == max(1, tokens // 5000)


def correlated(rng, runs, tokens, correlation):
    """Losses around 1 in which neighbors are alike: an autoregressive process in equilibrium."""
    noise = rng.normal(size=(runs, tokens + 1000))
    return 1 + np.asarray(lfilter([math.sqrt(1 - correlation**2)], [1, -correlation], noise))[:, 1000:]


@pytest.mark.parametrize("correlation", [pytest.param(0.0, marks=pytest.mark.slow), 0.9, 0.99])
def test_intervals_of_correlated_losses_hold_what_they_say(correlation):
    losses = correlated(np.random.default_rng(0), 300, 60_000, correlation)
    covered = 0
    for nats in losses:
        loss = Nats.of_tokens(nats, 1)
        covered += abs(loss.per_token - 1) <= t_quantile(11) * known(loss.standard_error)
    assert 0.9 <= covered / len(losses) <= 0.99


def test_seeds_of_one_recipe_are_seldom_called_different():
    """Two groups of seeds are compared as if their recipes differed: they are told apart in 5 % or less."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        text = rng.normal(0, 0.1, 20)
        nats = [(1 + text + rng.normal(0, 0.01, (4, 1)) + rng.normal(0, 0.01, (4, 20))) * UNITS for _ in range(2)]
        a, b = Side(nats[0], (0, 1, 2, 3)), Side(nats[1], (4, 5, 6, 7))
        wrong += verdict(a, b).better is not None
    assert wrong <= 14
