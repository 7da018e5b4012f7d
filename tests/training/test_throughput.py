import jax
import jax.numpy as jnp
import pytest
from ladder import filled, small

from babyjax.training.objective import sum_nats
from babyjax.training.throughput import PEAK_FLOPS, peak_flops, training_flops


@pytest.mark.parametrize("name", ["babygpt", "babygpt-v6-blocks", "gpt2"])
def test_flops_are_those_the_compiler_counts(name):
    """XLA counts the few operations besides the products too, and the body of a loop once: so it is unrolled."""
    vocab_size, batch, length = 200, 4, 32
    config = small(name, block_size=length, n_embd=96, n_layer=2 * (name != "babygpt"), unroll=2)
    model = filled(config, vocab_size)
    tokens = jnp.zeros((batch, length), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(sum_nats)).lower(model, tokens, tokens).compile()
    counted = compiled.cost_analysis()["flops"] / (batch * length)
    assert training_flops(model, length) == pytest.approx(counted, rel=0.15)


def test_flops_of_gpt2_follow_the_usual_rule():
    """6 for each weight in a product, the tied head's among them, 12 for each layer, position and width."""
    config = small("gpt2", n_embd=24, n_head=2, n_layer=3)
    weights = 3 * 12 * 24**2 + 24 * 50
    assert training_flops(filled(config, 50), 8) == 6 * weights + 12 * 3 * 8 * 24


def test_a_peak_is_known_or_not():
    assert peak_flops("NVIDIA H200") == PEAK_FLOPS["H200"]
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40S") is None
    assert peak_flops("cpu") is None
