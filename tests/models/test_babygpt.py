import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import BabyGPT
from babyjax.models import make_model
from babyjax.schema import BabyGPTConfig, BigramConfig, ModelConfig

V, D = 11, 4


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_logits_are_embedding_times_kernel_plus_bias(bias, jit):
    model = BabyGPT(V, D, bias=bias, key=jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, V)
    with chex.fake_jit(not jit):
        logits = jax.jit(lambda model, tokens: model(tokens))(model, tokens)
    chex.assert_shape(logits, (3, 5, V))
    chex.assert_type(logits, jnp.float32)
    parameters = {
        "/".join(str(key.name) for key in path[:-1]): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    }
    table = parameters["token_embedding/embedding"] @ parameters["lm_head/kernel"] + parameters.get("lm_head/bias", 0)
    np.testing.assert_allclose(logits, table[np.asarray(tokens)], rtol=1e-5, atol=1e-6)
    assert sum(leaf.size for leaf in parameters.values()) == V * D + D * V + bias * V


def test_width_zero_is_the_unigram_model():
    model = BabyGPT(V, 0, key=jax.random.key(0))
    logits = model(jnp.arange(V)[None])[0]
    chex.assert_trees_all_equal(logits, jnp.broadcast_to(model.lm_head.bias[...], (V, V)))


def test_the_start_is_pytorchs():
    model = BabyGPT(2000, 64, key=jax.random.key(0))
    embedding, kernel, bias = model.token_embedding.embedding[...], model.lm_head.kernel[...], model.lm_head.bias[...]
    assert float(embedding.mean()) == pytest.approx(0, abs=0.01)
    assert float(embedding.std()) == pytest.approx(1, abs=0.01)
    for uniform in (kernel, bias):
        assert float(jnp.abs(uniform).max()) <= 1 / 8
        assert float(uniform.std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.05)
    assert not jnp.allclose(kernel[0], bias)


def test_a_model_is_a_pytree_of_its_parameters_with_a_stable_structure():
    one, two = (BabyGPT(V, D, key=jax.random.key(seed)) for seed in (0, 1))
    chex.assert_trees_all_equal_structs(one, two)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, one)
    assert isinstance(doubled, BabyGPT)
    chex.assert_trees_all_close(doubled.lm_head.bias[...], 2 * one.lm_head.bias[...])
    stacked = jax.vmap(lambda key: BabyGPT(V, D, key=key))(jax.random.split(jax.random.key(0), 3))
    chex.assert_tree_shape_prefix(stacked, (3,))


def test_make_model_follows_the_config():
    babygpt = make_model(BabyGPTConfig("babygpt", 8, 7, False), V, jax.random.key(0))
    chex.assert_shape(babygpt(jnp.zeros((1, 1), jnp.int32)), (1, 1, V))
    assert {leaf.shape for leaf in jax.tree.leaves(babygpt)} == {(V, 7), (7, V)}
    bigram = make_model(BigramConfig("bigram", 8, 0.5, "corpus"), V, jax.random.key(0))
    assert (bigram.counts.shape, bigram.smoothing) == ((V, V), 0.5)
    with pytest.raises(TypeError):
        make_model(ModelConfig("?", 8), V, jax.random.key(0))
