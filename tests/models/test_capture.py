"""Intermediate values: seen, changed, differentiated."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, logits_of, mostly_slow, small

from babyjax.errors import ConfigError

V, T = 13, 8
TOKENS = jax.random.randint(jax.random.key(7), (2, T), 0, V)


@pytest.fixture(params=mostly_slow(["babygpt", "babygpt-v6-blocks", "gpt2", "qwen3-0.6b"], "qwen3-0.6b"))
def model(request):
    return filled(small(request.param), V)


def test_captured_values_are_those_of_the_network(model):
    logits, values = jax.jit(lambda model: model.capture(TOKENS))(model)
    np.testing.assert_allclose(logits, logits_of(model, TOKENS), atol=1e-5)
    config, layers = model.config, model.config.n_layer
    stream = (2, T, config.n_embd)
    expected: dict[str, tuple[int, ...]] = {"embedding": stream, "final": stream}
    if layers:
        expected |= dict.fromkeys(("attention", "residual"), (layers, *stream))
        expected["attention_weights"] = (layers, 2, config.n_head, T, T)
        expected["heads"] = (layers, 2, T, config.n_head, config.head_width)
        if config.feed_forward:
            expected |= {"feed_forward": (layers, *stream), "hidden": (layers, 2, T, config.hidden_width)}
    assert {name: value.shape for name, value in values.items()} == expected
    if layers:
        weights = values["attention_weights"]
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
        assert not np.triu(weights, 1).any()
        if config.residual:
            steps = values["attention"] + values["feed_forward"]
            np.testing.assert_allclose(values["residual"][-1], values["embedding"] + steps.sum(axis=0), atol=1e-5)


def test_a_patched_run_goes_on_as_the_run_the_value_comes_from(model):
    """With the first residual (or the embedding) of other tokens, the logits are those of the other tokens."""
    other = TOKENS[::-1]
    _, values = model.capture(other)

    @jax.jit
    def patched(model, values):
        def patch(name, layer, value):
            if model.config.n_layer:
                return jnp.where(layer == 0, values["residual"][0], value) if name == "residual" else value
            return values["embedding"] if name == "embedding" else value

        return model.capture(TOKENS, patch)

    logits, seen = patched(model, values)
    np.testing.assert_allclose(logits, logits_of(model, other), atol=1e-4)
    chex.assert_trees_all_close(seen["final"], values["final"], atol=1e-4)


@pytest.mark.slow
def test_a_head_is_ablated_in_one_layer_alone():
    model = filled(small("gpt2"), V)

    def ablate(name, layer, value):
        return value.at[:, :, 1].multiply(layer != 1) if name == "heads" else value

    _, values = model.capture(TOKENS, ablate)
    assert np.asarray(values["heads"][0, :, :, 1]).any()
    assert not np.asarray(values["heads"][1, :, :, 1]).any()
    cut = jax.tree.map(lambda leaf: leaf, model)
    kernel, size = cut.blocks.attention.projection.kernel[...], model.config.head_width
    cut.blocks.attention.projection.kernel[...] = kernel.at[1, size : 2 * size].set(0)
    np.testing.assert_allclose(model.capture(TOKENS, ablate)[0], logits_of(cut, TOKENS), atol=1e-5)


def test_a_logit_is_differentiated_by_what_it_comes_from():
    """Of a network without norm the slope of a logit by the last residual is a column of the head."""
    model = filled(small("babygpt-v8-projection"), V)

    def logit(shift):
        def move(name, layer, value):
            return value + shift * (layer == model.config.n_layer - 1) if name == "residual" else value

        return model.capture(TOKENS, move)[0][0, 3, 5]

    slope = jax.jit(jax.grad(logit))(jnp.zeros((2, T, model.config.n_embd)))
    np.testing.assert_allclose(slope[0, 3], model.lm_head.kernel[:, 5], rtol=1e-5)
    assert np.abs(slope).sum() == pytest.approx(np.abs(slope[0, 3]).sum())


def test_weights_of_attention_can_be_replaced():
    """If every query reads the first token alone, heads hold its value at every position."""
    model = filled(small("qwen3-0.6b"), V)

    def first_only(name, layer, value):
        return jnp.zeros_like(value).at[..., 0].set(1) if name == "attention_weights" else value

    heads = model.capture(TOKENS, first_only)[1]["heads"]
    np.testing.assert_allclose(heads, jnp.broadcast_to(heads[:, :, :1], heads.shape), atol=1e-6)


@pytest.mark.slow
def test_dropout_is_in_what_is_captured():
    model = filled(small("babygpt-v10-dropout"), V)
    key = jax.random.key(3)
    expected = jax.jit(lambda: model(TOKENS, key=key))()
    logits, values = jax.jit(lambda: model.capture(TOKENS, key=key))()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert float((values["attention"] == 0).mean()) == pytest.approx(model.config.dropout, abs=0.1)


def test_an_edit_of_another_shape_is_refused(model):
    for edit, shape in ((lambda name, layer, value: value[:1], r"\[1, "), (lambda *_: None, r"\[\]")):
        with pytest.raises(ConfigError, match=f"the edit of 'embedding' returned shape {shape}.*, expected"):
            model.capture(TOKENS, edit)
