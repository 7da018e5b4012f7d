import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, logits_of, mostly_slow, preset, small

from babyjax.config import BabyGPTConfig, BigramConfig, ModelConfig
from babyjax.errors import ConfigError
from babyjax.models import make_model, ops
from babyjax.models.babygpt import BabyGPT
from babyjax.training.step import sum_nats
from babyjax.trees import named_arrays

V, D = 11, 4


def v1(vocab_size=V, n_embd=D, seed=0, **options):
    return BabyGPT(BabyGPTConfig(n_embd=n_embd, **options), vocab_size, jax.random.key(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_logits_are_embedding_times_kernel_plus_bias(bias, jit):
    model = v1(head_bias=bias)
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, V)
    with chex.fake_jit(not jit):
        logits = jax.jit(lambda model, tokens: model(tokens))(model, tokens)
    chex.assert_shape(logits, (3, 5, V))
    chex.assert_type(logits, jnp.float32)
    parameters = {name: np.asarray(array, np.float64) for name, array in named_arrays(model).items()}
    table = parameters["token_embedding/embedding"] @ parameters["lm_head/kernel"] + parameters.get("lm_head/bias", 0)
    np.testing.assert_allclose(logits, table[np.asarray(tokens)], rtol=1e-5, atol=1e-6)
    assert sum(leaf.size for leaf in parameters.values()) == V * D + D * V + bias * V


def test_width_zero_is_the_unigram_model():
    model = v1(n_embd=0)
    logits = model(jnp.arange(V)[None])[0]
    chex.assert_trees_all_equal(logits, jnp.broadcast_to(model.lm_head.bias[...], (V, V)))


def test_the_initialization_is_pytorchs():
    model = v1(2000, 64)
    embedding, kernel, bias = model.token_embedding.embedding[...], model.lm_head.kernel[...], model.lm_head.bias[...]
    assert float(embedding.mean()) == pytest.approx(0, abs=0.01)
    assert float(embedding.std()) == pytest.approx(1, abs=0.01)
    for uniform in (kernel, bias):
        assert float(jnp.abs(uniform).max()) <= 1 / 8
        assert float(uniform.std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.05)
    assert not jnp.allclose(kernel[0], bias)


def test_a_model_is_a_pytree_of_its_parameters_with_a_stable_structure():
    one, two = v1(seed=0), v1(seed=1)
    chex.assert_trees_all_equal_structs(one, two)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, one)
    assert isinstance(doubled, BabyGPT)
    chex.assert_trees_all_close(doubled.lm_head.bias[...], 2 * one.lm_head.bias[...])
    config = BabyGPTConfig(n_embd=D)
    stacked = jax.vmap(lambda key: BabyGPT(config, V, key))(jax.random.split(jax.random.key(0), 3))
    chex.assert_tree_shape_prefix(stacked, (3,))


def test_models_of_equal_configs_share_a_compiled_program():
    logits = jax.jit(lambda model: model(jnp.zeros((1, 1), jnp.int32)))
    for config in (preset("babygpt"), preset("babygpt"), preset("babygpt").replace(attention="xla")):
        logits(filled(config, V))
    assert logits._cache_size() == 1
    logits(filled(preset("babygpt", n_head=2), V))
    assert logits._cache_size() == 2


def test_from_parameters_is_v1_with_these():
    model = v1()
    parameters = model.token_embedding.embedding[...], model.lm_head.kernel[...], model.lm_head.bias[...]
    chex.assert_trees_all_equal(BabyGPT.from_parameters(*parameters), model)
    without = BabyGPT.from_parameters(*parameters[:2])
    chex.assert_trees_all_equal_structs(without, v1(head_bias=False))


@pytest.mark.parametrize("possible", ["xla", "cudnn"])
def test_attention_is_decided_at_construction(monkeypatch, possible):
    asked = []
    monkeypatch.setattr("babyjax.models.ops.choose_attention", lambda *given: asked.append(given) or possible)

    def decided(attention):
        config = small("gpt2", attention=attention, dtype="bfloat16")
        return jax.eval_shape(lambda: BabyGPT(config, V, jax.random.key(0)))

    assert decided("xla").config.attention == "xla"
    assert not asked
    model = decided("auto")
    assert model.config.attention == model.blocks.attention.config.attention == possible
    assert asked == [("bfloat16", 8)]
    if possible == "cudnn":
        assert decided("cudnn").config.attention == "cudnn"
    else:
        with pytest.raises(ConfigError, match=r"model\.attention=cudnn needs .*; use model\.attention=auto"):
            decided("cudnn")


@pytest.mark.parametrize("vocab_size", [0, -1])
def test_a_vocabulary_has_a_token(vocab_size):
    with pytest.raises(ConfigError, match=f"vocab_size must be at least 1, got {vocab_size}"):
        v1(vocab_size)


def test_make_model_follows_the_config():
    babygpt = make_model(BabyGPTConfig(n_embd=7, head_bias=False), V, jax.random.key(0))
    chex.assert_shape(babygpt(jnp.zeros((1, 1), jnp.int32)), (1, 1, V))
    assert {leaf.shape for leaf in jax.tree.leaves(babygpt)} == {(V, 7), (7, V)}
    bigram = make_model(BigramConfig(smoothing=0.5), V, jax.random.key(0))
    assert (bigram.counts.shape, bigram.smoothing) == ((V, V), 0.5)
    with pytest.raises(TypeError):
        make_model(ModelConfig(), V, jax.random.key(0))


@pytest.mark.parametrize("name", mostly_slow(["babygpt", "babygpt-v6-blocks", "gpt2", "qwen3-0.6b"], "gpt2"))
def test_flops_are_those_the_compiler_counts(name):
    """XLA also counts the few operations besides the products, and the body of a loop once: so it is unrolled."""
    vocab_size, batch, length = 200, 4, 32
    config = small(name, block_size=length, n_embd=96, n_layer=2 * (name != "babygpt"), unroll=2)
    model = filled(config, vocab_size)
    tokens = jnp.zeros((batch, length), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(sum_nats)).lower(model, tokens, tokens).compile()
    counted = compiled.cost_analysis()["flops"] / (batch * length)
    # The backward pass costs twice the forward pass.
    assert 3 * model.flops(length) == pytest.approx(counted, rel=0.15)


def test_flops_of_gpt2_follow_the_usual_rule():
    """2 for each weight in a product, the tied head's among them, 4 for each layer, position and width."""
    config = small("gpt2", n_embd=24, n_head=2, n_layer=3)
    weights = 3 * 12 * 24**2 + 24 * 50
    assert filled(config, 50).flops(8) == 2 * weights + 4 * 3 * 8 * 24


@pytest.mark.parametrize(
    ("changes", "overlap"),
    [
        ({}, False),
        ({"unroll": 2}, True),
        ({"unroll": 9}, True),
        ({"unroll": 2, "dropout": 0.1}, False),
        ({"unroll": 2, "n_layer": 0}, False),
    ],
)
def test_halves_overlap_if_all_blocks_compile_as_one_and_nothing_is_dropped(changes, overlap):
    assert filled(small("babygpt-v9-layernorm", **changes), V).halves_overlap is overlap


def test_dropout_needs_a_rate_and_a_key():
    tokens = jnp.zeros((2, 8), jnp.int32)
    model = filled(small("babygpt-v9-layernorm"), V)
    same = jax.jit(lambda model, key: model(tokens, key=key))(model, jax.random.key(0))
    chex.assert_trees_all_equal(same, logits_of(model, tokens))


def test_what_is_computed_together_is_what_each_layer_computes(monkeypatch):
    """Queries, keys and values, and a hidden layer and its gate, with biases."""
    model = filled(small("qwen3-0.6b", qkv_bias=True, bias=True), V)
    tokens = jnp.arange(ops.ROWS_TOGETHER).reshape(-1, 8) % V

    def found():
        def total(model):
            logits = model(tokens)
            return jnp.cos(logits).sum(), logits

        together = "prevent_cse" in str(jax.make_jaxpr(total)(model))
        return together, jax.jit(jax.grad(total, has_aux=True))(model)

    together, ours = found()
    monkeypatch.setattr(ops, "ROWS_TOGETHER", tokens.size + 1)
    apart, theirs = found()
    assert (together, apart) == (True, False)
    chex.assert_trees_all_close(ours, theirs, atol=1e-4, rtol=1e-4)
