from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyjax.config import BabyGPTConfig
from babyjax.errors import DivergenceError, OutOfMemoryError
from babyjax.models import make_model
from babyjax.options import load_config
from babyjax.recipes import presets
from babyjax.training import gradient
from babyjax.training.gradient import GradientTrainer
from babyjax.training.step import sum_nats, sum_nats_in_halves

V = 7
TOKENS = np.random.default_rng(0).integers(0, V, 500).astype(np.int32)


def trainer(*arguments: str, model: BabyGPTConfig | None = None, tokens=TOKENS) -> GradientTrainer:
    config = load_config(["model.n_embd=3", "model.block_size=5", "train.batch_size=4", *arguments])
    chosen = config.model if model is None else model
    initialize = partial(make_model, chosen, V)
    return GradientTrainer(initialize, tokens, chosen.block_size, config.train, config.optimizer)


def steps_and_losses(events):
    return [(event.step, len(event.train_losses), event.last) for event in events]


@settings(max_examples=5)
@given(steps=st.integers(1, 60), first=st.integers(1, 20), second=st.integers(1, 20))
def test_events_pause_at_every_multiple_and_at_the_end(steps, first, second):
    ours = trainer(f"train.steps={steps}")
    compiled, *seen = steps_and_losses(ours.run(ours.init(), (first, second)))
    assert compiled == (0, 0, False)
    reached = [step for step, _, _ in seen]
    assert {*range(first, steps + 1, first), *range(second, steps + 1, second), steps} <= set(reached)
    assert np.cumsum([count for _, count, _ in seen]).tolist() == reached
    assert [last for *_, last in seen] == [step == steps for step in reached]


def test_a_finished_state_yields_nothing():
    ours = trainer("train.steps=3")
    *_, last = ours.run(ours.init())
    assert last.summary
    assert next(ours.run(last.state), None) is None


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(monkeypatch):
    real = gradient.make_advance

    def diverging(*arguments, **options):
        advance = real(*arguments, **options)

        def poisoned(state, tokens, count, hyper):
            state, losses = advance(state, tokens, count, hyper)
            place = 9 - (state.step - count)
            return state, jnp.where(jnp.arange(len(losses)) == place, jnp.nan, losses)

        return jax.jit(poisoned)

    monkeypatch.setattr(gradient, "make_advance", diverging)
    ours = trainer("train.steps=100")
    with pytest.raises(DivergenceError, match=r"the loss became nan at step 10; try a lower optimizer\.learning_rate"):
        for _ in ours.run(ours.init()):
            pass


def test_a_model_or_batch_too_large_for_the_device_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("babyjax.training.devices.memory_of", lambda device: 100)
    ours = trainer("train.steps=3")
    with pytest.raises(OutOfMemoryError, match=r"a model of 49 parameters needs 0\.0 GiB"):
        ours.init()
    monkeypatch.setattr("babyjax.training.devices.memory_of", lambda device: 3000)
    state = ours.init()
    with pytest.raises(OutOfMemoryError, match="a batch of 4 x 5 tokens needs"):
        next(ours.run(state))


@pytest.mark.skipif([d.platform for d in jax.devices()] != ["cpu"], reason="only one CPU halves batches")
def test_only_large_unrolled_steps_without_dropout_are_halved():
    def halved(rows: int, **changes) -> bool:
        config = presets["gpt-tiny-2019"].replace(**changes)
        ours = trainer(f"train.batch_size={rows}", model=config)
        model = jax.eval_shape(lambda: make_model(config, 65, jax.random.key(0)))
        nats = ours._nats(model)
        assert nats in (sum_nats, sum_nats_in_halves)
        return nats is sum_nats_in_halves

    assert halved(12)
    assert not halved(12, unroll=1)
    assert not halved(64, n_layer=0, n_embd=2048)
    assert not halved(12, n_embd=32)
    assert not halved(1, n_embd=512)
    assert not halved(12, dropout=0.2)
