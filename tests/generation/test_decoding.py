"""Decoding with a cache of keys and values, beside the same without one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder import RUNGS, filled, logits_of, small

from babyjax import generate
from babyjax.errors import ConfigError, TokenError
from babyjax.generation.sampling import ENDED, sample_token

V, BLOCK = 11, 8
CACHED = [name for name in RUNGS if name not in ("babygpt",)]
MODELS = {name: filled(small(name), V) for name in ("babygpt-v2-position", "babygpt-v6-blocks", "gpt2")}
EXTEND = jax.jit(lambda model, cache, tokens, counts: model.extend(cache, tokens, counts))


class WithoutCache(nnx.Module):
    """The same function, that generation has to compute anew for every token."""

    def __init__(self, model):
        self.model, self.receptive_field = model, model.receptive_field

    def __call__(self, tokens):
        return self.model(tokens)


@pytest.mark.parametrize("name", CACHED)
def test_the_cache_gives_every_position_the_logits_of_the_whole(name):
    model, tokens = filled(small(name), V), jax.random.randint(jax.random.key(0), (3, BLOCK), 0, V)
    expected, cache = logits_of(model, tokens), model.empty_cache(3)
    for position in range(BLOCK):
        one = jnp.ones(3, jnp.int32)
        logits, cache = EXTEND(model, cache, tokens[:, position : position + 1], one)
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-5)


@given(data=st.data(), name=st.sampled_from(sorted(MODELS)), batch=st.sampled_from([1, 3]))
def test_prompts_read_in_pieces_of_any_lengths_give_the_logits_of_the_whole(data, name, batch):
    model = MODELS[name]
    tokens = np.array(data.draw(st.lists(st.integers(0, V - 1), min_size=batch * BLOCK, max_size=batch * BLOCK)))
    tokens = tokens.reshape(batch, BLOCK).astype(np.int32)
    expected, cache, rows = np.asarray(logits_of(model, tokens)), model.empty_cache(batch), np.arange(batch)
    while (room := BLOCK - int(cache.length.max())) > 0:
        width = data.draw(st.sampled_from([width for width in (1, 4, 8) if width <= room]))
        counts = np.array(data.draw(st.lists(st.integers(1, width), min_size=batch, max_size=batch)), np.int32)
        places = np.minimum(np.asarray(cache.length)[:, None] + np.arange(width), BLOCK - 1)
        logits, cache = EXTEND(model, cache, tokens[rows[:, None], places], counts)
        np.testing.assert_allclose(logits, expected[rows, np.asarray(cache.length) - 1], atol=1e-5)


def by_the_stated_rule(model, prompt, count):
    """The likeliest tokens one by one, the context as the docstring of `generation.sampling` has it."""
    context, drawn = list(prompt)[-BLOCK:], []
    for _ in range(count):
        padded = np.zeros((1, BLOCK), np.int32)
        padded[0, : len(context)] = context
        drawn.append(int(jnp.argmax(logits_of(model, padded)[0, len(context) - 1])))
        if len(context) == BLOCK:
            context = context[-(BLOCK // 2) :]
        context.append(drawn[-1])
    return drawn


@given(st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=11), min_size=3, max_size=3))
@settings(max_examples=10)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_texts_longer_than_a_block_follow_the_stated_rule_with_and_without_a_cache(name, prompts):
    model, prompts = MODELS[name], [np.array(prompt) for prompt in prompts]
    tokens = generate(model, prompts, jax.random.key(0), 21, temperature=0.0)
    assert tokens.tolist() == [by_the_stated_rule(model, prompt, 21) for prompt in prompts]
    drawn = generate(model, prompts, jax.random.key(1), 21)
    chex.assert_trees_all_equal(generate(WithoutCache(model), prompts, jax.random.key(1), 21), drawn)


def test_a_row_is_the_same_beside_prompts_of_any_length():
    model = MODELS["gpt2"]
    prompts = [np.arange(3), np.arange(8), np.arange(1), np.arange(11)]
    together = generate(model, prompts, jax.random.key(0), 15)
    alone = generate(model, prompts[:1], jax.random.key(0), 15)
    chex.assert_trees_all_equal(together[:1], alone)
    assert (together[1] != together[2]).any()


def test_a_row_ends_with_its_stop_token_and_the_others_go_on():
    model, prompts = MODELS["gpt2"], np.arange(6)[:, None]
    free = np.asarray(generate(model, prompts, jax.random.key(0), 30, 3.0))
    stops = [4, 7]
    stopped = np.asarray(generate(model, prompts, jax.random.key(0), 30, 3.0, stop_tokens=stops))
    ended = 0
    for row, whole in zip(stopped, free, strict=True):
        end = next((index + 1 for index, token in enumerate(whole) if token in stops), len(whole))
        np.testing.assert_array_equal(row[:end], whole[:end])
        assert (row[end:] == ENDED).all()
        ended += end < 30
    assert ended > 0


def test_room_for_more_tokens_is_not_drawn_from():
    tokens = generate(MODELS["gpt2"], np.zeros((4, 1), np.int32), jax.random.key(0), 40, 5.0, vocab_size=6)
    assert set(np.unique(tokens).tolist()) == set(range(6))


LOGITS = jnp.log(jnp.array([0.05, 0.4, 0.1, 0.3, 0.15]))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.71}, {1, 3, 4}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.74}, {1, 3}),
        ({"min_p": 0.76}, {1}),
        ({"min_p": 0.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.9}, {1, 3, 4}),  # of the three, 0.47, 0.35 and 0.18
        ({"top_k": 3, "top_p": 0.8}, {1, 3}),
        ({"top_k": 4, "min_p": 0.3}, {1, 3, 4}),
        ({"temperature": 0.5, "top_p": 0.87}, {1, 3}),  # squared: 0.55, 0.31, 0.08, ...
    ],
)
def test_what_is_cut_is_never_drawn_and_the_rest_by_its_probability(options, kept):
    keys, temperature = jax.random.split(jax.random.key(0), 20_000), options.pop("temperature", 1.0)
    draw = jax.jit(jax.vmap(lambda key: sample_token(key, LOGITS, temperature, **options)))
    frequencies = np.bincount(draw(keys), minlength=5) / len(keys)
    assert set(np.flatnonzero(frequencies).tolist()) == kept
    weights = np.where(np.isin(np.arange(5), list(kept)), np.exp(LOGITS / temperature), 0)
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.015)


def test_a_temperature_near_0_is_as_0():
    drawn = [int(sample_token(jax.random.key(seed), jnp.array([1.0, 5.0, 30.0]), 2e-38)) for seed in range(4)]
    assert drawn == [2, 2, 2, 2]


def test_every_token_of_a_large_vocabulary_has_its_chance():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, 1000), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 400_000)
    drawn = np.bincount(jax.jit(jax.vmap(lambda key: sample_token(key, logits, 1.0)))(keys), minlength=1000)
    expected = len(keys) * np.asarray(jax.nn.softmax(logits), np.float64)
    # Pearson's statistic has mean 999 and standard deviation 45.
    assert (np.square(drawn - expected) / expected).sum() < 999 + 5 * 45


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prompts": []}, TokenError),
        ({"prompts": [np.array([], np.int32)]}, TokenError),
        ({"prompts": [np.array([V])]}, TokenError),
        ({"max_new_tokens": -1}, ConfigError),
        ({"temperature": -1.0}, ConfigError),
        ({"temperature": float("nan")}, ConfigError),
        ({"top_k": 0}, ConfigError),
        ({"top_p": 0.0}, ConfigError),
        ({"top_p": 1.5}, ConfigError),
        ({"min_p": -0.1}, ConfigError),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, error):
    options = {"prompts": [np.array([1])], "key": jax.random.key(0), "max_new_tokens": 3} | change
    with pytest.raises(error):
        generate(MODELS["gpt2"], **options)
