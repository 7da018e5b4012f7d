from functools import partial

import chex
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


def program_of(monkeypatch, *arguments: str):
    """The compiled program of a trainer."""
    compiled, programs = gradient._compiled, []
    monkeypatch.setattr(gradient, "_compiled", lambda *given: programs.append(compiled(*given)) or programs[0])
    ours = trainer(*arguments)
    next(ours.run(ours.init()))
    monkeypatch.setattr(gradient, "_compiled", compiled)
    return programs[0]


def test_a_cpu_keeps_the_residual_stream_instead_of_summing_it_again(monkeypatch):
    program = program_of(monkeypatch, "model=babygpt-v7-residual", "model.n_head=1", "model.n_layer=1")
    assert "opt-barrier(" in program.as_text()


@pytest.mark.slow
def test_recomputing_unrolled_blocks_saves_memory(monkeypatch):
    sizes = ("model=babygpt-v7-residual", "model.n_head=1", "model.n_embd=16", "model.block_size=32")
    sizes += ("model.n_layer=4", "model.unroll=4")
    kept, recomputed = (
        program_of(monkeypatch, *sizes, f"model.remat={remat}").memory_analysis().temp_size_in_bytes
        for remat in (False, True)
    )
    assert recomputed < 0.7 * kept


def poison(monkeypatch, change):
    """Let `change(losses, first)` replace the losses of a dispatch from step `first`."""
    real = gradient.make_advance

    def poisoned_advance(*arguments, **options):
        advance = real(*arguments, **options)

        def poisoned(state, tokens, count, hyper):
            state, losses = advance(state, tokens, count, hyper)
            return state, change(losses, state.step - count)

        return jax.jit(poisoned)

    monkeypatch.setattr(gradient, "make_advance", poisoned_advance)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(monkeypatch):
    poison(monkeypatch, lambda losses, first: jnp.where(jnp.arange(len(losses)) == 9 - first, jnp.nan, losses))
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
        nats = ours._nats()
        assert nats in (sum_nats, sum_nats_in_halves)
        return nats is sum_nats_in_halves

    assert halved(12)
    assert not halved(12, unroll=1)
    assert not halved(64, n_layer=0, n_embd=2048)
    assert not halved(12, n_embd=32)
    assert not halved(1, n_embd=512)
    assert not halved(12, dropout=0.2)


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_alone():
    """Except for rounding: the same batches, dropout and learning rates, with pauses at the same steps."""
    seeds, options = (3, 0, 8), ("model=babygpt-v10-dropout", "model.n_layer=1", "model.n_head=1", "train.steps=12")
    runs = [trainer(*options, f"train.seed={seed}") for seed in seeds]
    start, *rows = runs[0].run_side_by_side([run.init() for run in runs], seeds, (5,))
    assert [len(event.train_losses) for event in start] == [0, 0, 0]
    assert [[event.step for event in row] for row in rows] == [[step] * 3 for step in [row[0].step for row in rows]]
    assert {5, 10, 12} <= {row[0].step for row in rows}
    for index, run in enumerate(runs):
        alone = list(run.run(run.init(), (5,)))
        ours, theirs = (
            np.concatenate([event.train_losses for event in events]) for events in ([row[index] for row in rows], alone)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        chex.assert_trees_all_close(rows[-1][index].state, alone[-1].state, rtol=1e-4, atol=1e-6)
        assert rows[-1][index].last


def test_a_loss_that_is_not_finite_names_the_seed_side_by_side(monkeypatch):
    poison(monkeypatch, lambda losses, first: losses.at[:, 1].set(jnp.inf))
    ours = trainer("train.steps=101")
    with pytest.raises(DivergenceError, match="the loss of seed 9 became inf at step 1; "):
        for _ in ours.run_side_by_side([ours.init(), ours.init()], [4, 9]):
            pass


@pytest.mark.parametrize(("backend", "rows", "gains"), [("cpu", 64, False), ("gpu", 64, True), ("gpu", 10**9, False)])
def test_small_steps_on_an_accelerator_gain_side_by_side(monkeypatch, backend, rows, gains):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = trainer(f"train.batch_size={rows}", model=presets["gpt-tiny"])
    assert ours.gains_side_by_side is gains
