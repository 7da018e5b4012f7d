from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder import filled, small

from babyjax import BabyGPT, Hyper, batch_at, init_state, make_advance
from babyjax.config import BabyGPTConfig
from babyjax.errors import ConfigError
from babyjax.options import load_config
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import (
    MAX_STEPS_PER_DISPATCH,
    dropout_key,
    init_key,
    sum_nats,
    sum_nats_in_halves,
    train_step,
)

V = 7
CONFIG = load_config([]).optimizer
OPTIMIZER = make_optimizer(CONFIG, 5000)
SGD = make_optimizer(load_config(["optimizer=sgd"]).optimizer, 10)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, 500), jnp.int32)
ADVANCE = make_advance(lambda rate: make_optimizer(CONFIG, 5000, rate), batch_size=4, block_size=5)
HYPER = Hyper(1, 1e-2)


def fresh_state():
    return init_state(BabyGPT(BabyGPTConfig(n_embd=3), V, init_key(0)), OPTIMIZER)


def advance(state, count, hyper=HYPER):
    return ADVANCE(state, TOKENS, count, hyper)


def key_bytes(key) -> bytes:
    return bytes(np.asarray(jax.random.key_data(key)))


def test_a_step_is_adamw_on_the_gradient_of_the_batch():
    state, batch = fresh_state(), batch_at(TOKENS, 1, 0, 4, 5)
    after, loss = jax.jit(train_step, static_argnums=2)(state, batch, OPTIMIZER)
    assert int(after.step) == 1

    def batch_loss(model):
        return -jnp.take_along_axis(jax.nn.log_softmax(model(batch[0])), batch[1][..., None], axis=-1).mean()

    expected_loss, gradient = jax.jit(jax.value_and_grad(batch_loss))(state.model)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    # The first AdamW step moves every weight by the learning rate against the sign of its gradient, after decay.
    before, gradient = jax.device_get((state.model, gradient))
    expected = jax.tree.map(lambda w, g: w * (1 - 1e-2 * 0.01) - 1e-2 * g / (np.abs(g) + 1e-8), before, gradient)
    chex.assert_trees_all_close(after.model, expected, atol=2e-6)


@pytest.mark.slow
def test_advance_runs_the_steps_one_by_one_with_and_without_jit():
    state, expected_losses = fresh_state(), []
    jitted = jax.jit(train_step, static_argnums=2)
    for step in range(4):
        batch = batch_at(TOKENS, 1, step, 4, 5)
        with jax.disable_jit(step == 0):
            state, loss = (train_step if step == 0 else jitted)(state, batch, OPTIMIZER)
        expected_losses.append(loss)
    after, losses = advance(fresh_state(), 4)
    chex.assert_shape(losses, (MAX_STEPS_PER_DISPATCH,))
    np.testing.assert_allclose(losses[:4], expected_losses, rtol=1e-5)
    assert not losses[4:].any()
    chex.assert_trees_all_close(after, state, rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_a_run_cut_anywhere_equals_to_the_bit_the_run_that_was_not(cuts):
    whole, losses = advance(fresh_state(), sum(cuts))
    state, pieces = fresh_state(), []
    for count in cuts:
        state, piece = advance(state, count)
        pieces.append(piece[:count])
    chex.assert_trees_all_equal(state, whole)
    chex.assert_trees_all_equal(jnp.concatenate(pieces), losses[: sum(cuts)])


def test_seeds_and_learning_rates_share_one_compilation():
    shared = make_advance(lambda rate: make_optimizer(CONFIG, 5000, rate), batch_size=4, block_size=5)
    pairs = [(0, 1e-2), (0, 1e-3), (5, 1e-2), (5, 1e-3)]
    results = {pair: shared(fresh_state(), TOKENS, 10, Hyper(*pair)) for pair in pairs}
    assert shared._cache_size() == 1
    assert len({float(losses[9]) for _, losses in results.values()}) == 4
    for seed, rate in (pairs[0], pairs[-1]):
        config = CONFIG.replace(learning_rate=rate)
        own = make_advance(lambda _, config=config: make_optimizer(config, 5000), batch_size=4, block_size=5)
        expected, expected_losses = own(fresh_state(), TOKENS, 10, Hyper(seed, 0.0))
        state, losses = results[seed, rate]
        chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


@pytest.mark.slow
def test_runs_of_several_seeds_and_rates_are_a_vmap():
    hyper = Hyper(jnp.array([0, 3]), jnp.array([1e-2, 1e-3]))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fresh_state())
    together, _ = jax.vmap(lambda state, hyper: ADVANCE(state, TOKENS, 5, hyper))(states, hyper)
    for index in range(2):
        alone, _ = advance(fresh_state(), 5, jax.tree.map(lambda leaf, i=index: leaf[i], hyper))
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=index: leaf[i], together), alone, rtol=1e-5, atol=1e-6)


def test_the_state_is_donated():
    state = fresh_state()
    leaves = jax.tree.leaves(state)
    advance(state, 1)
    assert all(leaf.is_deleted() for leaf in leaves)


def test_initialization_and_dropout_share_no_key_with_a_batch():
    batches = {key_bytes(jax.random.fold_in(jax.random.key(3), step)) for step in range(1000)}
    dropouts = {key_bytes(dropout_key(3, step)) for step in range(1000)}
    assert len(batches) == len(dropouts) == 1000
    assert not dropouts & (batches | {key_bytes(init_key(3))})
    assert key_bytes(init_key(3)) not in batches


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_give_the_step_of_the_whole_batch(parts):
    state = init_state(filled(small("babygpt-v9-layernorm", n_layer=1), V), SGD)
    batch = batch_at(TOKENS, 1, 0, 4, 8)
    step = jax.jit(lambda state, parts: train_step(state, batch, SGD, accumulation=parts), static_argnums=1)
    whole, loss = step(state, 1)
    after, same_loss = step(state, parts)
    assert float(same_loss) == pytest.approx(float(loss), rel=1e-6)
    chex.assert_trees_all_close(after.model, whole.model, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_accumulation_parts_and_steps_drop_differently():
    state = init_state(filled(small("babygpt-v10-dropout", n_layer=1), V), SGD)
    inputs, targets = (jnp.tile(part[:1], (4, 1)) for part in batch_at(TOKENS, 1, 0, 4, 8))
    step = jax.jit(
        lambda key, parts: train_step(state, (inputs, targets), SGD, key, accumulation=parts)[1], static_argnums=1
    )
    losses = [float(step(dropout_key(0, number), parts)) for number in (0, 1) for parts in (1, 2, 4)]
    assert len(set(losses)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 5])
def test_two_halves_side_by_side_give_the_step_of_the_whole_batch(rows):
    state = init_state(filled(small("babygpt-v9-layernorm", n_layer=1), V), SGD)
    batch = batch_at(TOKENS, 1, 0, rows, 8)
    whole, loss = jax.jit(lambda state: train_step(state, batch, SGD))(state)
    halved, same_loss = jax.jit(lambda state: train_step(state, batch, SGD, nats=sum_nats_in_halves))(state)
    assert float(same_loss) == pytest.approx(float(loss), rel=1e-6)
    chex.assert_trees_all_close(halved.model, whole.model, rtol=1e-5, atol=1e-6)
    products = [
        str(jax.make_jaxpr(partial(nats, state.model))(*batch)).count("dot_general")
        for nats in (sum_nats, sum_nats_in_halves)
    ]
    assert products[1] == 2 * products[0] > 0


@pytest.mark.parametrize("accumulation", [3, 0])
def test_a_batch_without_equal_parts_is_refused(accumulation):
    with pytest.raises(ConfigError, match=f"train.accumulation={accumulation} does not divide train.batch_size=4"):
        make_advance(lambda rate: OPTIMIZER, batch_size=4, block_size=5, accumulation=accumulation)
