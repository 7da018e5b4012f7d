"""What is true of every rung: causality, no mixing of rows, and the same numbers however it is compiled."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import BLOCK, LADDER, QUICK_RUNGS, RUNGS, V, filled, logits_of, mostly_slow, preset, small

from babyjax.config import BabyGPTConfig
from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.training.step import sum_nats

TOKENS = jax.random.randint(jax.random.key(7), (3, BLOCK), 0, V)


@pytest.fixture(params=mostly_slow(RUNGS, *QUICK_RUNGS))
def rung(request):
    """Every rung of the ladder, small."""
    return small(request.param)


def test_no_logit_depends_on_a_later_token(rung):
    """By gradients: what the network reads at a position reaches the logits from there on, and no earlier ones."""
    model, tokens = filled(rung, V), jnp.arange(BLOCK)[None]

    def mixed_logits(shift, position):
        logits, _ = model.capture(tokens, lambda name, _, value: value + shift if name == "embedding" else value)
        return logits[0, position] @ jnp.arange(1.0, V + 1)

    gradients = jax.jit(jax.vmap(jax.grad(mixed_logits), (None, 0)))(jnp.zeros((BLOCK, rung.n_embd)), jnp.arange(BLOCK))
    reached = np.abs(np.asarray(gradients)).sum(axis=2) > 0
    np.testing.assert_array_equal(reached, np.tri(BLOCK, dtype=bool) if rung.n_layer else np.eye(BLOCK, dtype=bool))


def test_rows_of_a_batch_do_not_mix(rung):
    model, order = filled(rung, V), jnp.array([2, 0, 1])
    logits = logits_of(model, TOKENS)
    chex.assert_shape(logits, (3, BLOCK, V))
    chex.assert_trees_all_close(logits_of(model, TOKENS[order]), logits[order], atol=1e-5)
    chex.assert_trees_all_close(logits_of(model, TOKENS[:1, :5]), logits[:1, :5], atol=1e-5)


def test_padding_changes_nothing_before_it(rung):
    model = filled(rung, V)
    cut = logits_of(model, TOKENS[:1, :5])
    chex.assert_trees_all_close(cut, logits_of(model, TOKENS.at[:, 5:].set(0))[:1, :5], atol=1e-5)


@pytest.mark.parametrize("name", QUICK_RUNGS)
def test_a_token_alone_has_the_logits_it_has_before_others(name):
    model = filled(small(name), V)
    chex.assert_trees_all_close(logits_of(model, TOKENS[:1, :1]), logits_of(model, TOKENS)[:1, :1], atol=1e-5)


@cache
def loss_and_gradient(**change):
    config = small("babygpt-v10-dropout", n_layer=3, **change)
    return jax.jit(jax.value_and_grad(sum_nats))(filled(config, V), TOKENS, TOKENS, jax.random.key(3))


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"unroll": 2}, {"unroll": 1000}, {"remat": True}])
def test_scanned_unrolled_and_rematerialized_agree(change):
    """Also if dropout is on: one key for each block, whatever is compiled together."""
    expected, gradient = loss_and_gradient()
    loss, same = loss_and_gradient(**change)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    # Structures differ by the options themselves.
    for ours, theirs in zip(jax.tree.leaves(same), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", mostly_slow(["babygpt", "babygpt-v6-blocks", "gpt2"], "babygpt"))
def test_with_and_without_jit(name):
    model = filled(small(name), V)
    with jax.disable_jit():
        logits = model(TOKENS)
    np.testing.assert_allclose(logits_of(model, TOKENS), logits, atol=1e-5)


def parameters_of(config: BabyGPTConfig, vocab_size: int) -> int:
    """The closed formula, idea by idea."""
    width, hidden = config.n_embd, config.hidden_width
    norm = {"none": 0, "layer": width * (1 + config.bias), "rms": width}[config.norm]
    block = 0
    if config.n_layer:
        query, key = config.n_head * config.head_width, config.kv_heads * config.head_width
        block += (query + 2 * key) * (width + config.qkv_bias) + config.qk_norm * 2 * config.head_width
        block += config.projection * width * (query + config.bias) + norm
    if hidden:
        block += (1 + config.gated) * hidden * (width + config.bias)
        block += config.projection * width * (hidden + config.bias) + norm
    head = (not config.tied) * width * vocab_size + config.head_bias * vocab_size
    positions = config.block_size if config.position == "learned" else 0
    return width * (vocab_size + positions) + norm + config.n_layer * block + head


@pytest.mark.parametrize("name", LADDER)
def test_parameters_are_those_of_the_closed_formula(name):
    config = preset(name)
    shapes = jax.eval_shape(lambda: BabyGPT(config, 65, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == parameters_of(config, config.vocab_size or 65)
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "smollm2-135m": 134_515_008,
        "qwen3-0.6b": 596_049_920,
    }
    assert count == published.get(name, count)


def test_bfloat16_keeps_parameters_and_logits_in_float32(rung):
    full, half = filled(rung, V), filled(rung.replace(dtype="bfloat16"), V)
    logits = logits_of(half, TOKENS)
    chex.assert_type([logits, *jax.tree.leaves(half)], jnp.float32)
    expected = logits_of(full, TOKENS)
    assert 0 < float(jnp.abs(logits - expected).max()) < 0.05 * float(jnp.abs(expected).max())


def test_dropout_needs_a_key_and_draws_anew_with_each():
    model = filled(small("babygpt-v10-dropout"), V)
    dropped = jax.jit(lambda key: model(TOKENS, key=key))
    silent, one, same, two = (dropped(key) for key in (None, *map(jax.random.key, (1, 1, 2))))
    chex.assert_trees_all_equal(one, same)
    chex.assert_trees_all_close(silent, logits_of(model, TOKENS), atol=1e-5)
    assert (one != two).any()
    assert (one != silent).any()


def test_more_tokens_than_a_block_are_refused_by_all_but_v1(rung):
    model, tokens = filled(rung, V), jnp.zeros((1, BLOCK + 1), jnp.int32)
    if rung.n_layer or rung.position == "learned":
        with pytest.raises(ConfigError, match="9 tokens do not fit a block of 8"):
            model(tokens)
    else:
        assert model(tokens).shape == (1, BLOCK + 1, V)


def test_a_block_of_one_token_reads_one():
    with pytest.raises(ConfigError, match="2 tokens do not fit a block of 1"):
        filled(small("gpt2", block_size=1), V)(TOKENS[:, :2])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"n_embd": 30}, "model.n_head=4 does not divide model.n_embd=30"),
        ({"n_embd": 0}, "model.n_head=4 does not divide model.n_embd=0"),
        ({"projection": False}, "model.feed_forward=4 needs model.projection=true"),
        ({"vocab_size": 10}, "model.vocab_size=10 has no room for the 11 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        BabyGPT(preset("babygpt-v9-layernorm", **change), V, jax.random.key(0))


@pytest.mark.slow
def test_gpt2_is_initialized_as_published():
    model = BabyGPT(preset("gpt2", n_embd=96, n_layer=4, vocab_size=500), V, jax.random.key(0))
    into, back = model.blocks.attention.query, model.blocks.attention.projection
    assert float(model.token_embedding.embedding[...].std()) == pytest.approx(0.02, rel=0.05)
    assert float(into.kernel[...].std()) == pytest.approx(0.02, rel=0.05)
    assert float(back.kernel[...].std()) == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert not into.bias[...].any()
    assert model.lm_head is None
    assert model.lm_head_bias is None
