"""One token from logits: what may be drawn, and how often."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax.generation.draw import sample_token

LOGITS = jnp.log(jnp.array([0.05, 0.4, 0.1, 0.3, 0.15]))
KEYS = jax.random.split(jax.random.key(0), 20_000)


def frequencies_of(logits, *arguments, **options):
    drawn = jax.jit(jax.vmap(lambda key: sample_token(key, logits, *arguments, **options)))(KEYS)
    return np.bincount(drawn, minlength=len(logits)) / len(KEYS)


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
    temperature = options.get("temperature", 1.0)
    frequencies = frequencies_of(LOGITS, **{"temperature": temperature} | options)
    assert set(np.flatnonzero(frequencies).tolist()) == kept
    weights = np.where(np.isin(np.arange(5), list(kept)), np.exp(LOGITS / temperature), 0)
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.015)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 99)])
def test_tokens_are_drawn_from_the_distribution_asked_for(temperature, top_k):
    logits = jnp.array([0.0, 1.0, 2.0, -1.0, 0.5])
    frequencies = frequencies_of(logits, temperature, top_k)
    kept = np.sort(logits)[-min(top_k or 5, 5)]
    weights = np.where(logits >= kept, np.exp(np.asarray(logits) / temperature), 0)
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.015)
    assert (frequencies[weights == 0] == 0).all()


def test_top_k_keeps_k_also_among_equals():
    frequencies = frequencies_of(jnp.log(jnp.array([1.0, 9.0, 1.0, 1.0, 1.0])), 1.0, 2)
    assert np.flatnonzero(frequencies).tolist() == [0, 1]


def test_a_temperature_near_0_is_as_0():
    sample = jax.jit(sample_token)
    drawn = [int(sample(jax.random.key(seed), jnp.array([1.0, 5.0, 30.0]), 2e-38)) for seed in range(4)]
    assert drawn == [2, 2, 2, 2]


def test_every_token_of_a_large_vocabulary_has_its_chance():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, 1000), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 400_000)
    drawn = np.bincount(jax.jit(jax.vmap(lambda key: sample_token(key, logits, 1.0)))(keys), minlength=1000)
    expected = len(keys) * np.asarray(jax.nn.softmax(logits), np.float64)
    # Pearson's statistic has mean 999 and standard deviation 45.
    assert (np.square(drawn - expected) / expected).sum() < 999 + 5 * 45


def sample_with(uniform, logits, top_p=None):
    """Sample with this number in place of the random one."""
    with mock.patch("jax.random.uniform", return_value=uniform):
        return sample_token(jax.random.key(0), logits, 1.0, top_p=top_p)


UNIFORMS = jnp.array([0.0, 0.3, 0.999, 1 - 2**-23], jnp.float32)  # the first and last are the extremes
SAMPLE_WITH = jax.jit(jax.vmap(jax.vmap(sample_with, (None, 0, None)), (0, None, None)))


@pytest.mark.parametrize("vocab_size", [100, 50_257])
def test_a_masked_token_is_not_drawn_whatever_the_random_number(vocab_size):
    """The float32 cumulative sum over a large vocabulary can rise and fall where the probabilities are 0."""
    logits = np.random.default_rng(0).normal(0, 1, (48, vocab_size)).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    for drawn in SAMPLE_WITH(UNIFORMS, logits, 0.9):
        chosen = probabilities[np.arange(48), drawn][:, None]
        assert np.where(probabilities > chosen, probabilities, 0).sum(axis=1).max() < 0.9 + 1e-4


@pytest.mark.parametrize("seen", [1, 64, 65, 4999])
def test_a_token_of_probability_0_is_not_drawn_whatever_the_random_number(seen):
    logits = np.full((8, 5000), -np.inf, np.float32)
    logits[:, :seen] = np.random.default_rng(seen).normal(size=(8, seen))
    drawn = np.asarray(SAMPLE_WITH(UNIFORMS, logits, None))
    assert drawn.max() < seen
    assert (np.diff(drawn, axis=0) >= 0).all()
    assert (drawn[0] == 0).all()
