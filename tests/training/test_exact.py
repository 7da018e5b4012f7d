"""Training on counts as events."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from chains import V, random_pairs

from babyjax import BabyGPTConfig, ExactEvaluator, evaluated
from babyjax.config import CountsConfig
from babyjax.counts import fit as fit_module
from babyjax.errors import OutOfMemoryError
from babyjax.evaluation.losses import Nats
from babyjax.models.base import LanguageModel
from babyjax.training.events import Trainer
from babyjax.training.exact import ExactTrainer
from babyjax.trees import named_arrays

PAIRS = random_pairs(seed=1, length=200)
EVALUATE = ExactEvaluator(PAIRS, np.ones(V, int))


def trainer(
    n_embd: int = 3,
    bias: bool = True,
    evaluate: Callable[[LanguageModel], dict[str, Nats]] = EVALUATE,
    **options,
) -> ExactTrainer:
    return ExactTrainer(PAIRS, BabyGPTConfig(n_embd=n_embd, bias=bias), CountsConfig(**options), 0, evaluate)


def test_events_are_one_per_step_and_say_what_happened():
    counts = trainer(starts=3)
    assert isinstance(counts, Trainer)
    first, *events = counts.run(counts.init(), pauses=(5,))
    assert (first.step, len(first.train_losses), first.note) == (0, 0, "")
    assert [event.step for event in events] == list(range(1, len(events) + 1))
    assert [event.last for event in events] == [False] * (len(events) - 1) + [True]
    assert sum(event.milestone for event in events) == 3
    for event in events:
        assert int(event.state.step) == event.step
        assert set(event.details) == {"start", "seed", "smoothing", "penalty", "objective"}
        assert event.details["smoothing"] == 1 / V
        assert event.train_losses.item() == EVALUATE(event.state.model)["train"].per_token
    # From the second restart on, the best network is one object until a restart finds a better one.
    ends = [event.step for event in events if event.milestone]
    assert len({id(event.state.model) for event in events[ends[0] - 1 :]}) <= 3
    known, smoothed, took = events[-1].summary
    assert known == f"known     {counts._problem.quality(events[-1].state.rest)}"
    assert smoothed.startswith(f"smoothed  by {1 / V:.3g} per cell; the bigram smoothed so: train ")
    assert took.endswith(f"for {len(events)} steps on the counts, compilation included")


def test_a_run_continues_from_any_state_as_if_it_had_never_stopped():
    counts = trainer(starts=2)
    events = [event for event in counts.run(counts.init()) if event.step]
    cut = len(events) // 2
    arrays = [np.array(leaf) for leaf in named_arrays(events[cut - 1].state).values()]
    again = trainer(starts=2)
    first, *rest = again.run(jax.tree.unflatten(jax.tree.structure(again.init()), arrays))
    assert (first.step, len(first.train_losses)) == (cut, 0)
    for event, expected in zip(rest, events[cut:], strict=True):
        assert (event.step, event.details, event.note) == (expected.step, expected.details, expected.note)
        np.testing.assert_array_equal(event.train_losses, expected.train_losses)
        jax.tree.map(np.testing.assert_array_equal, event.state, expected.state)
    assert not list(again.run(rest[-1].state))


def test_models_are_evaluated_only_when_they_change():
    models = []

    def evaluate(model):
        models.append(model)
        return EVALUATE(model)

    counts = trainer(starts=3, evaluate=evaluate)
    events = list(evaluated(counts.run(counts.init()), evaluate, 1))
    assert len(models) == len({id(event.state.model) for event in events[1:]})
    assert events[-1].losses is not None
    assert events[-1].train_losses.item() == events[-1].losses["train"].per_token


@pytest.mark.parametrize("choose", ["smoothing", pytest.param("penalty", marks=pytest.mark.slow)])
def test_validation_chooses(choose):
    counts = trainer(choose=choose, starts=1, bias=False)
    *_, last = counts.run(counts.init())
    known, chosen, *_ = last.summary
    assert "chosen by validation among" in known
    assert chosen.startswith(f"chosen    {choose}=")
    assert EVALUATE(last.state.model)["val"].per_token == pytest.approx(float(last.state.rest.best_score), abs=1e-6)


def test_a_fit_without_second_order_has_one_start_and_says_so(monkeypatch):
    monkeypatch.setattr(fit_module, "DENSE_BLOCKS", 0)
    counts = trainer(starts=3)
    first, *events = counts.run(counts.init())
    assert first.note == "too large for Levenberg-Marquardt steps: one start, from the SVD"
    assert sum(event.milestone for event in events) == 1


def test_a_model_too_large_for_the_memory_is_an_error():
    with pytest.raises(OutOfMemoryError, match="this device has"):
        trainer(n_embd=2_000_000_000).init()
