from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder import filled, small

from babyjax import BabyGPT, batch_at
from babyjax.config import load_config
from babyjax.errors import ConfigError, DivergenceError
from babyjax.models import make_model
from babyjax.training.loop import dispatches
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import MAX_STEPS_PER_DISPATCH, dropout_key, init_state, make_advance, start_key, train_step

V = 7
OPTIMIZER = make_optimizer(load_config([]).optimizer, 5000)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, 500), jnp.int32)
ADVANCE = make_advance(OPTIMIZER, seed=1, batch_size=4, block_size=5)


def fresh_state():
    return init_state(BabyGPT(V, 3, key=start_key(0)), OPTIMIZER)


def test_a_step_is_adamw_on_the_gradient_of_the_batch():
    state, batch = fresh_state(), batch_at(TOKENS, 1, 0, 4, 5)
    after, loss = jax.jit(train_step, static_argnums=2)(state, batch, OPTIMIZER)
    assert int(after.step) == 1

    def batch_loss(model):
        return -jnp.take_along_axis(jax.nn.log_softmax(model(batch[0])), batch[1][..., None], axis=-1).mean()

    expected_loss, gradient = jax.jit(jax.value_and_grad(batch_loss))(state.model)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    # The first AdamW step moves every weight by the learning rate against the sign of its gradient, after decay.
    expected = jax.tree.map(lambda w, g: w * (1 - 1e-2 * 0.01) - 1e-2 * g / (jnp.abs(g) + 1e-8), state.model, gradient)
    chex.assert_trees_all_close(after.model, expected, atol=2e-6)


def test_advance_runs_the_steps_one_by_one_with_and_without_jit():
    state, expected_losses = fresh_state(), []
    jitted = jax.jit(train_step, static_argnums=2)
    for step in range(4):
        batch = batch_at(TOKENS, 1, step, 4, 5)
        with jax.disable_jit(step == 0):
            state, loss = (train_step if step == 0 else jitted)(state, batch, OPTIMIZER)
        expected_losses.append(loss)
    after, losses = ADVANCE(fresh_state(), TOKENS, 4)
    chex.assert_shape(losses, (MAX_STEPS_PER_DISPATCH,))
    np.testing.assert_allclose(losses[:4], expected_losses, rtol=1e-5)
    assert not losses[4:].any()
    chex.assert_trees_all_close(after, state, rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_a_run_cut_anywhere_is_to_the_bit_the_run_that_was_not(cuts):
    whole, losses = ADVANCE(fresh_state(), TOKENS, sum(cuts))
    state, pieces = fresh_state(), []
    for count in cuts:
        state, piece = ADVANCE(state, TOKENS, count)
        pieces.append(piece[:count])
    chex.assert_trees_all_equal(state, whole)
    chex.assert_trees_all_equal(jnp.concatenate(pieces), losses[: sum(cuts)])


def test_the_state_is_donated():
    state = fresh_state()
    leaves = jax.tree.leaves(state)
    ADVANCE(state, TOKENS, 1)
    assert all(leaf.is_deleted() for leaf in leaves)


def test_the_random_start_shares_no_key_with_a_batch():
    data = {bytes(np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(3), step)))) for step in range(1000)}
    assert bytes(np.asarray(jax.random.key_data(start_key(3)))) not in data


@given(steps=st.integers(1, 60), first=st.integers(1, 20), second=st.integers(1, 20))
def test_dispatches_pause_at_every_multiple_and_at_the_end(steps, first, second):
    def count_up(state, tokens, count):
        return state._replace(step=state.step + count), jnp.ones(MAX_STEPS_PER_DISPATCH)

    state = fresh_state()._replace(step=np.int32(0))
    seen = [(done.step, len(done.losses)) for done in dispatches(count_up, state, TOKENS, steps, first, second)]
    reached = [step for step, _ in seen]
    assert {*range(first, steps + 1, first), *range(second, steps + 1, second), steps} <= set(reached)
    assert np.cumsum([count for _, count in seen]).tolist() == reached
    assert reached[-1] == steps


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    state = fresh_state()
    for _ in dispatches(ADVANCE, state, TOKENS, 4):
        pass

    def diverge(state, tokens, count):
        state, losses = ADVANCE(state, tokens, count)
        return state, losses.at[max(0, 9 - int(state.step - count))].set(jnp.nan)

    with pytest.raises(DivergenceError, match=r"the loss became nan at step 10; a lower optimizer\.learning_rate"):
        for _ in dispatches(diverge, fresh_state(), TOKENS, 100, 100):
            pass


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_step_of_the_whole(parts):
    optimizer = make_optimizer(load_config(["optimizer=sgd"]).optimizer, 10)
    state = init_state(filled(small("babygpt-v9-layernorm"), V), optimizer)
    batch = batch_at(TOKENS, 1, 0, 4, 8)
    step = jax.jit(lambda state, parts: train_step(state, batch, optimizer, accumulation=parts), static_argnums=1)
    whole, loss = step(state, 1)
    after, same_loss = step(state, parts)
    assert float(same_loss) == pytest.approx(float(loss), rel=1e-6)
    chex.assert_trees_all_close(after.model, whole.model, rtol=1e-5, atol=1e-6)


def test_parts_and_steps_drop_out_differently():
    model = filled(small("babygpt-v10-dropout"), V)
    optimizer = make_optimizer(load_config(["optimizer=sgd"]).optimizer, 10)
    inputs, targets = (jnp.tile(part[:1], (4, 1)) for part in batch_at(TOKENS, 1, 0, 4, 8))
    step = jax.jit(
        lambda key, parts: train_step(init_state(model, optimizer), (inputs, targets), optimizer, key, parts)[1],
        static_argnums=1,
    )
    losses = [float(step(dropout_key(0, number), parts)) for number in (0, 1) for parts in (1, 2, 4)]
    assert len(set(losses)) == 6
    keys = {bytes(np.asarray(jax.random.key_data(dropout_key(0, number)))) for number in range(1000)}
    batches = {bytes(np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(0), n)))) for n in range(1000)}
    assert len(keys) == 1000
    assert not keys & (batches | {bytes(np.asarray(jax.random.key_data(start_key(0))))})


def products(state, batch, optimizer=OPTIMIZER, key=None) -> int:
    return str(jax.make_jaxpr(lambda state: train_step(state, batch, optimizer, key))(state)).count("dot_general")


ONE_CPU = pytest.mark.skipif([device.platform for device in jax.devices()] != ["cpu"], reason="only a CPU halves")


@ONE_CPU
@pytest.mark.parametrize("rows", [2, 5])
def test_halves_side_by_side_give_the_step_of_the_whole(rows, monkeypatch):
    optimizer = make_optimizer(load_config(["optimizer=sgd"]).optimizer, 10)
    model = filled(replace(small("babygpt-v9-layernorm"), unroll=9), V)
    state, batch = init_state(model, optimizer), batch_at(TOKENS, 1, 0, rows, 8)
    whole, loss = jax.jit(lambda state: train_step(state, batch, optimizer))(state)
    operations = products(state, batch, optimizer)
    monkeypatch.setattr("babyjax.training.step.HALVED_FROM", 0)
    assert products(state, batch, optimizer) == 2 * operations
    after, same_loss = jax.jit(lambda state: train_step(state, batch, optimizer))(state)
    assert float(same_loss) == pytest.approx(float(loss), rel=1e-6)
    chex.assert_trees_all_close(after.model, whole.model, rtol=1e-5, atol=1e-6)


@ONE_CPU
def test_small_steps_looped_blocks_single_rows_and_dropout_are_not_halved(monkeypatch):
    def halved(rows, key=None, **changes):
        config = replace(load_config(["model=gpt-tiny"]).model, **changes)
        state = jax.eval_shape(lambda: init_state(make_model(config, 65, start_key(0)), OPTIMIZER))
        batch = batch_at(TOKENS, 1, 0, rows, config.block_size)
        with monkeypatch.context() as patch:
            patch.setattr("babyjax.training.step.HALVED_FROM", float("inf"))
            whole = products(state, batch, key=key)
        return products(state, batch, key=key) == 2 * whole

    assert halved(12)
    assert not halved(12, unroll=1)
    assert not halved(64, n_layer=0, n_embd=2048)
    assert not halved(12, n_embd=32)
    assert not halved(1, n_embd=512)
    assert not halved(12, dropout_key(0, 0), dropout=0.2)


def test_a_batch_without_equal_parts_is_refused():
    with pytest.raises(ConfigError, match="a batch of 4 has not 3 equal parts"):
        make_advance(OPTIMIZER, seed=1, batch_size=4, block_size=5, accumulation=3)
