import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from babyjax.models.layers import Norm, dropout


@pytest.mark.parametrize("centered", [True, False])
def test_a_norm_is_its_definition_and_its_gradient_is_right(centered):
    norm = Norm(6, 1e-2, centered=centered, bias=centered)
    x = np.random.default_rng(0).normal(3, 2, (4, 6)).astype(np.float32)
    norm.scale[...] = jnp.arange(1.0, 7)
    expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-2)
    if not centered:
        assert norm.bias is None
        expected = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-2)
    else:
        norm.bias[...] = jnp.arange(6.0)
    normed = jax.jit(norm)
    np.testing.assert_allclose(normed(x), expected * np.arange(1, 7) + centered * np.arange(6), rtol=1e-5, atol=1e-5)
    check_grads(jax.jit(lambda x: jnp.sin(norm(x))), (x,), order=1, modes="rev", atol=2e-2, rtol=2e-2)


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    x = jnp.full((200, 200), 2.0)
    dropped = dropout(x, 0.2, jax.random.key(0))
    assert set(np.unique(dropped).tolist()) == {0.0, 2.5}
    assert float((dropped == 0).mean()) == pytest.approx(0.2, abs=0.01)
    chex.assert_trees_all_equal(dropout(x, 0.2, None), x)
    chex.assert_trees_all_equal(dropout(x, 0.0, jax.random.key(0)), x)
