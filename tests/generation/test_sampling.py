import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import BabyGPT, Bigram, generate
from babyjax.generation.sampling import sample_token

V = 5
MODEL = BabyGPT(V, 3, key=jax.random.key(0))


@pytest.mark.parametrize(("batch", "prompt_length", "count"), [(1, 1, 7), (3, 2, 1), (2, 1, 0)])
def test_shape_range_and_reproducibility(batch, prompt_length, count):
    prompt = jnp.ones((batch, prompt_length), jnp.int32)
    tokens = generate(MODEL, prompt, jax.random.key(3), count)
    chex.assert_shape(tokens, (batch, count))
    chex.assert_type(tokens, jnp.int32)
    assert ((tokens >= 0) & (tokens < V)).all()
    chex.assert_trees_all_equal(tokens, generate(MODEL, prompt, jax.random.key(3), count))


def test_another_seed_gives_another_text_and_rows_differ():
    prompt = jnp.ones((2, 1), jnp.int32)
    one, two = (generate(MODEL, prompt, jax.random.key(seed), 50) for seed in (0, 1))
    assert (one != two).any()
    assert (one[0] != one[1]).any()


def test_a_row_does_not_depend_on_the_others():
    prompt = jnp.array([[0], [1], [2]], jnp.int32)
    together = generate(MODEL, prompt, jax.random.key(0), 20)
    chex.assert_trees_all_equal(generate(MODEL, prompt[:1], jax.random.key(0), 20), together[:1])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}])
def test_temperature_0_and_top_1_follow_the_likeliest(options):
    tokens = generate(MODEL, jnp.array([[2]], jnp.int32), jax.random.key(0), 6, **options)[0]
    current = 2
    for token in tokens.tolist():
        assert token == int(jnp.argmax(MODEL(jnp.array([[current]]))))
        current = token


def test_a_chain_without_choice_is_followed_and_only_the_last_prompt_token_counts():
    cycle = Bigram.from_tokens(np.array([0, 1, 2, 3, 4, 0], np.int32), V, smoothing=0.0)
    tokens = generate(cycle, jnp.array([[4, 4, 2]], jnp.int32), jax.random.key(0), 6)
    assert tokens.tolist() == [[3, 4, 0, 1, 2, 3]]


def test_top_k_keeps_k_also_among_equals():
    keys = jax.random.split(jax.random.key(0), 300)
    logits = jnp.log(jnp.array([1.0, 9.0, 1.0, 1.0, 1.0]))
    drawn = jax.vmap(lambda key: sample_token(key, logits, 1.0, 2))(keys)
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 99)])
def test_tokens_are_drawn_from_the_distribution_asked_for(temperature, top_k):
    logits = jnp.array([0.0, 1.0, 2.0, -1.0, 0.5])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: sample_token(key, logits, temperature, top_k))(keys)
    kept = np.sort(logits)[-min(top_k or V, V)]
    weights = np.where(logits >= kept, np.exp(np.asarray(logits) / temperature), 0)
    frequencies = np.bincount(drawn, minlength=V) / len(drawn)
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.015)
    assert (frequencies[weights == 0] == 0).all()
