import jax.numpy as jnp
import numpy as np
import pytest
from chains import V, random_pairs
from ladder import filled, small

from babyjax.counts.factors import Factors, balance, factors_of, svd_factors
from babyjax.errors import ConfigError
from babyjax.models.bigram import Bigram


def test_balancing_leaves_the_logits_and_reaches_the_nuclear_norm(rng):
    factors = Factors(rng.normal(size=(V, 3)), rng.normal(size=(V, 3)), rng.normal(size=V))
    balanced = balance(factors)
    np.testing.assert_allclose(balanced.logits(), factors.logits(), atol=1e-12)
    nuclear = np.linalg.norm(factors.embedding @ factors.head.T, "nuc")
    assert balanced.squares() / 2 == pytest.approx(nuclear)
    assert balanced.squares() <= factors.squares()


@pytest.mark.parametrize("bias", [True, False])
def test_the_svd_of_sparse_counts_is_that_of_a_dense_matrix(monkeypatch, bias):
    pairs = random_pairs(vocab_size=40, length=5000)
    dense = svd_factors(pairs, 4, bias=bias)
    monkeypatch.setattr("babyjax.counts.factors.DENSE_VOCAB", 0)
    sparse = svd_factors(pairs, 4, bias=bias)
    np.testing.assert_allclose(sparse.logits(), dense.logits(), atol=1e-6)


def test_only_v1_has_factors():
    others = small("babygpt-v2-position"), small("babygpt", logit_cap=5.0), small("babygpt", dtype="bfloat16")
    for model in (*(filled(config, V) for config in others), Bigram(jnp.zeros((V, V), jnp.int32))):
        with pytest.raises(ConfigError, match="only BabyGPT v1"):
            factors_of(model)


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_has_the_logits_of_its_factors(rng, bias):
    factors = Factors(rng.normal(size=(V, 3)), rng.normal(size=(V, 3)), rng.normal(size=V) if bias else None)
    model = factors.model(5)
    assert (model.config.n_embd, model.config.head_bias) == (5, bias)
    np.testing.assert_allclose(factors_of(model).logits(), factors.logits(), atol=1e-5)
    np.testing.assert_allclose(model(jnp.arange(V)[None])[0], factors.logits(), atol=1e-5)
