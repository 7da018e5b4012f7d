"""Text sampled token by token: the same however it is decoded, batched and padded."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder import BLOCK, V, filled, logits_of, mostly_slow, small

from babyjax.errors import ConfigError, TokenError
from babyjax.generation.sampling import ENDED, _generate, generate
from babyjax.models.base import LanguageModel
from babyjax.models.bigram import Bigram

NEW = 21
MODELS = {name: filled(small(name), V) for name in ("babygpt", "babygpt-v2-position", "babygpt-v6-blocks", "gpt2")}
V1, GPT2 = MODELS["babygpt"], MODELS["gpt2"]
PROMPTS = np.array([[0], [1], [2]], np.int32)


class WithoutCache(LanguageModel):
    """The same function with the default decoder, which rereads the window for every token."""

    def __init__(self, model):
        self.model, self.vocab_size = model, model.vocab_size

    @property
    def context_length(self):
        return self.model.context_length

    def __call__(self, tokens, *, key=None):
        return self.model(tokens)


@pytest.mark.parametrize(("batch", "prompt_length", "count"), [(1, 1, 7), (3, 2, 1), (2, 1, 0)])
def test_shape_range_and_reproducibility(batch, prompt_length, count):
    prompt = jnp.ones((batch, prompt_length), jnp.int32)
    tokens = generate(V1, prompt, jax.random.key(3), count)
    chex.assert_shape(tokens, (batch, count))
    chex.assert_type(tokens, jnp.int32)
    assert ((tokens >= 0) & (tokens < V)).all()
    chex.assert_trees_all_equal(tokens, generate(V1, prompt, jax.random.key(3), count))


def test_another_seed_gives_another_text_and_rows_differ():
    prompt = jnp.ones((3, 1), jnp.int32)
    one, two = (generate(V1, prompt, jax.random.key(seed), 50) for seed in (0, 1))
    assert (one != two).any()
    assert (one[0] != one[1]).any()


def test_a_row_does_not_depend_on_the_others():
    together = generate(V1, PROMPTS, jax.random.key(0), 50)
    chex.assert_trees_all_equal(generate(V1, PROMPTS[:1], jax.random.key(0), 50), together[:1])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-300}])
def test_temperature_0_and_top_1_are_greedy(options):
    tokens = generate(V1, PROMPTS[2:], jax.random.key(0), 50, **options)[0]
    best = np.asarray(logits_of(V1, jnp.arange(V)[None]))[0].argmax(axis=1)
    assert tokens.tolist() == best[[2, *tokens.tolist()[:-1]]].tolist()


def test_a_chain_without_choice_is_followed_and_only_the_last_prompt_token_counts():
    cycle = Bigram.from_tokens(np.array([0, 1, 2, 3, 4, 0], np.int32), 5, smoothing=0.0)
    tokens = generate(cycle, jnp.array([[4, 4, 2]], jnp.int32), jax.random.key(0), 6)
    assert tokens.tolist() == [[3, 4, 0, 1, 2, 3]]


def by_the_stated_rule(model, prompt, count):
    """The most likely tokens one by one, with the context that the docstring of `generation.sampling` states."""
    size = model.context_length
    context, drawn = list(prompt)[-size:], []
    for _ in range(count):
        padded = np.zeros((3, size), np.int32)  # three rows, a shape that other tests compile too
        padded[0, : len(context)] = context
        drawn.append(int(jnp.argmax(logits_of(model, padded)[0, len(context) - 1])))
        if len(context) == size:
            context = context[size - size // 2 :]
        context.append(drawn[-1])
    return drawn


@given(st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=11), min_size=3, max_size=3))
@settings(max_examples=10)
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.slow
def test_texts_longer_than_a_block_follow_the_stated_rule_with_and_without_a_cache(name, prompts):
    # The longest prompt is as long as a block, so that all examples share a compiled program.
    model, prompts = MODELS[name], [np.array(prompt) for prompt in [*prompts[:2], prompts[2] * BLOCK]]
    tokens = generate(model, prompts, jax.random.key(0), NEW, temperature=0.0)
    assert tokens.tolist() == [by_the_stated_rule(model, prompt, NEW) for prompt in prompts]
    drawn = generate(model, prompts, jax.random.key(1), NEW)
    chex.assert_trees_all_equal(generate(WithoutCache(model), prompts, jax.random.key(1), NEW), drawn)


@pytest.mark.parametrize("name", mostly_slow(["babygpt", "gpt2"], "babygpt"))
def test_short_prompts_follow_the_stated_rule(name):
    tokens = generate(MODELS[name], PROMPTS, jax.random.key(0), NEW, temperature=0.0)
    assert tokens.tolist() == [by_the_stated_rule(MODELS[name], prompt, NEW) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("count", [BLOCK, BLOCK + 1])
def test_a_text_that_never_fills_a_block_is_the_beginning_of_one_that_does(count):
    model = MODELS["babygpt-v6-blocks"]
    shorter, longer = (generate(model, PROMPTS, jax.random.key(3), size) for size in (count, NEW))
    chex.assert_trees_all_equal(shorter, longer[:, :count])


def test_a_text_that_never_fills_a_block_needs_no_program_to_reread_it():
    def products(count):
        limits, stops = (1.0, None, None), np.zeros(0, np.int32)
        lowered = _generate.lower(
            GPT2, PROMPTS, np.ones(3, np.int32), jax.random.key(0), limits, stops, count, None, None
        )
        return lowered.as_text().count("stablehlo.dot_general")

    never, full = products(BLOCK), products(BLOCK + 1)
    assert 0 < never < full


@pytest.mark.slow
def test_a_row_is_the_same_beside_prompts_of_any_length():
    prompts = [np.arange(3), np.arange(8), np.arange(11)]
    together = generate(GPT2, prompts, jax.random.key(0), NEW)
    alone = generate(GPT2, prompts[:1], jax.random.key(0), NEW)
    chex.assert_trees_all_equal(together[:1], alone)
    assert (together[1] != together[2]).any()


def test_a_row_ends_with_its_stop_token_and_the_others_go_on():
    model, prompts = MODELS["babygpt-v2-position"], np.arange(6)[:, None]
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
    tokens = generate(V1, PROMPTS, jax.random.key(0), 50, 5.0, vocab_size=6)
    assert set(np.unique(tokens).tolist()) == set(range(6))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": []}, TokenError, "prompts is empty; give at least one prompt"),
        ({"prompts": [np.array([1]), np.array([], np.int32)]}, TokenError, r"prompt 1 has shape \(0,\)"),
        ({"prompts": [np.array([[1]])]}, TokenError, r"prompt 0 has shape \(1, 1\); it must be \(T,\)"),
        ({"prompts": [np.array([V])]}, TokenError, f"token id {V} is outside the vocabulary of {V} tokens"),
        ({"prompts": [np.array([1.0], np.float32)]}, TokenError, "token ids must be integers, got float32"),
        ({"max_new_tokens": -1}, ConfigError, "max_new_tokens must be at least 0, got -1"),
        ({"temperature": -1.0}, ConfigError, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, ConfigError, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, ConfigError, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, ConfigError, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, ConfigError, r"top_p must lie in \(0, 1\], got 1.5"),
        ({"min_p": -0.1}, ConfigError, r"min_p must lie in \[0, 1\], got -0.1"),
        ({"vocab_size": 0}, ConfigError, rf"vocab_size must lie in \[1, {V}\], got 0"),
        ({"vocab_size": V + 1}, ConfigError, rf"vocab_size must lie in \[1, {V}\], got {V + 1}"),
    ],
)
def test_invalid_options_are_refused(changes, error, message):
    options = {"prompts": [np.array([1])], "key": jax.random.key(0), "max_new_tokens": 3} | changes
    with pytest.raises(error, match=message):
        generate(GPT2, **options)
