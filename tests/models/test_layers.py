import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from babyjax.models.layers import LayerNorm, attend, attend_cached, dropout


def test_layer_norm_is_its_definition_and_its_gradient_by_hand_is_right():
    norm, x = LayerNorm(6), 3 + 2 * jax.random.normal(jax.random.key(0), (4, 6))
    norm.scale[...] = jnp.arange(1.0, 7)
    norm.bias[...] = jnp.arange(6.0)
    expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), expected * np.arange(1, 7) + np.arange(6), rtol=1e-5, atol=1e-5)
    check_grads(lambda x: jnp.sin(norm(jnp.asarray(x))), (x,), order=1, modes="rev", atol=2e-2, rtol=2e-2)


CUDNN_OR_XLA = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
ATTEND = jax.jit(lambda q, k, v: attend(q, k, v, 0.0, None))


@given(st.integers(0, 99), st.sampled_from([(1, 1, 5), (8, 2, 4)]))
def test_attention_is_its_definition(seed, shape):
    length, count, size = shape
    q, k, v = np.random.default_rng(seed).normal(size=(3, 2, *shape)).astype(np.float32)
    expected = np.zeros((2, length, count, size))
    for row, time, head in np.ndindex(2, length, count):
        scores = k[row, : time + 1, head] @ q[row, time, head] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        expected[row, time, head] = weights @ v[row, : time + 1, head] / weights.sum()
    np.testing.assert_allclose(ATTEND(q, k, v), expected, atol=1e-5)
    np.testing.assert_allclose(CUDNN_OR_XLA(q, k, v), expected, atol=1e-5)


@pytest.mark.parametrize("column", [0, 3, 4, 7, 8, 15])
def test_one_query_reads_the_columns_up_to_its_own_whatever_share_of_the_cache_is_used(column):
    q, k, v = jax.random.normal(jax.random.key(column), (3, 1, 16, 2, 4))
    expected = ATTEND(q, k, v)[:, column : column + 1]
    keys, values = (jnp.where(jnp.arange(16)[:, None] <= column, part.swapaxes(1, 2), 1e3) for part in (k, v))
    ours = jax.jit(attend_cached)(q[:, column : column + 1], keys, values, jnp.array([[column]]))
    chex.assert_trees_all_close(ours, expected, atol=1e-5)


def test_dropout_keeps_the_mean_and_drops_the_share_it_says():
    x = jnp.full((200, 200), 2.0)
    dropped = dropout(x, 0.2, jax.random.key(0))
    assert set(np.unique(dropped).tolist()) == {0.0, 2.5}
    assert float((dropped == 0).mean()) == pytest.approx(0.2, abs=0.01)
    chex.assert_trees_all_equal(dropout(x, 0.2, None), x)


def test_attention_weights_are_dropped_after_they_are_normalised():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 4, 2, 3))
    keys = jax.random.split(jax.random.key(1), 4000)
    outputs = jax.jit(jax.vmap(lambda key: attend(q, k, v, 0.3, key)))(keys)
    np.testing.assert_allclose(outputs.mean(axis=0), attend(q, k, v, 0.0, None), atol=0.1)
    # The first position reads one token: what it says is that value over 1 - rate, or nothing.
    first = np.asarray(outputs[:, 0, 0])
    share = (np.abs(first).max(axis=2) == 0).mean()
    assert share == pytest.approx(0.3, abs=0.03)
    kept = first[np.abs(first).max(axis=2) > 0]
    np.testing.assert_allclose(np.unique(kept.round(4), axis=0), np.unique((v[0, 0] / 0.7).round(4), axis=0), atol=1e-3)
