import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.data.batches import batch_at, split_tokens
from babyjax.errors import DataError

jitted = jax.jit(batch_at, static_argnums=(3, 4))


@given(st.integers(20, 500))
def test_split_is_the_first_nine_tenths_and_the_rest(length):
    tokens = np.arange(length, dtype=np.int32)
    split = split_tokens(tokens)
    assert len(split.train) == int(0.9 * length)
    np.testing.assert_array_equal(np.concatenate(split), tokens)


def test_a_text_shorter_than_a_block_is_refused():
    tokens = np.zeros(20, np.int32)
    assert len(split_tokens(tokens, block_size=17).train) == 18
    with pytest.raises(DataError, match=r"20 tokens.* too short for a block of 18"):
        split_tokens(tokens, block_size=18)
    with pytest.raises(DataError, match="too short to keep 10 %"):
        split_tokens(tokens[:10], block_size=1)


@given(step=st.integers(0, 2**31 - 2), seed=st.integers(0, 2**31 - 1))
def test_batch_holds_windows_and_the_same_windows_one_later(step, seed):
    tokens = jnp.arange(100, dtype=jnp.int32)
    inputs, targets = map(np.asarray, jitted(tokens, seed, step, 4, 8))
    chex.assert_shape([inputs, targets], (4, 8))
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    assert inputs.min() >= 0
    assert targets.max() <= 99


def test_batch_is_a_function_of_seed_and_step_with_and_without_jit():
    tokens = jnp.arange(10_000, dtype=jnp.int32)
    chex.assert_trees_all_equal(jitted(tokens, 7, 3, 32, 8), batch_at(tokens, 7, 3, 32, 8))
    starts = {tuple(jitted(tokens, seed, step, 32, 8)[0][:, 0].tolist()) for seed in (0, 1) for step in (0, 1, 2)}
    assert len(starts) == 6


def test_every_window_is_drawn_the_last_included():
    tokens = jnp.arange(12, dtype=jnp.int32)
    inputs, targets = jitted(tokens, 0, 0, 1000, 8)
    assert sorted(set(inputs[:, 0].tolist())) == [0, 1, 2, 3]
    assert targets.max() == 11
