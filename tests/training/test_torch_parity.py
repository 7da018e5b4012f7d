"""Every rung in PyTorch beside ours: same parameters, batches, logits and losses. Needs the `bench` extra."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import BLOCK, RUNGS, V, filled, logits_of, small

from babyjax import BabyGPT, Hyper, batch_at, init_state, make_advance
from babyjax.options import load_config
from babyjax.training.optimizer import make_optimizer

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the bench extra)")
from experiments.peers import torch_gpt  # noqa: E402

CHARACTERS = 65  # of tinyshakespeare
TOKENS = jnp.asarray(np.random.default_rng(0).zipf(1.3, 20_000) % CHARACTERS, jnp.int32)


def torch_batch(step, shape):
    return (torch.tensor(np.asarray(part), dtype=torch.long) for part in batch_at(TOKENS, 1, step, *shape))


def torch_losses(network, optimizer, config, steps, shape):
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = torch_gpt.learning_rate(config, step, steps)
        inputs, targets = torch_batch(step, shape)
        loss = torch.nn.functional.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(model, config, steps, shape):
    advance = make_advance(lambda rate: make_optimizer(config, steps, rate), *shape)
    state = jax.jit(partial(init_state, optimizer=make_optimizer(config, steps)))(model)
    state, losses = advance(state, TOKENS, steps, Hyper(1, config.learning_rate))
    return state.model, losses[:steps]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNGS)
def test_logits_and_50_steps_of_adamw_are_pytorchs(name):
    """By the recipe of the rung, except for dropout, which draws otherwise, and at a rate that v6 can bear."""
    recipe = ("optimizer.warmup_steps=5", "optimizer.learning_rate=4e-3")
    optimizer_config: Any = load_config([f"model={name}", *recipe]).optimizer
    config = small(name, dropout=0.0)
    model, inputs = filled(config, V), np.random.default_rng(0).integers(0, V, (3, BLOCK)).astype(np.int32)
    with torch.no_grad():
        expected = torch_gpt.TorchGPT.like(model)(torch.tensor(inputs).long()).numpy()
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(logits_of(model, inputs), expected, atol=1e-5 * scale)
    model, shape = filled(config, CHARACTERS, spread=0.4), (4, BLOCK)
    network = torch_gpt.TorchGPT.like(model)
    expected = torch_losses(network, torch_gpt.adamw(network, optimizer_config), optimizer_config, 50, shape)
    _, losses = our_losses(model, optimizer_config, 50, shape)
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    assert expected[-1] < expected[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_the_first_100_losses_of_the_seed_are_pytorchs(bias):
    config: Any = load_config([f"model.head_bias={bias}"])
    model = BabyGPT(config.model, CHARACTERS, jax.random.key(0))
    network = torch_gpt.TorchGPT.like(model)
    shape = (config.train.batch_size, config.model.block_size)
    expected = torch_losses(network, torch_gpt.adamw(network, config.optimizer), config.optimizer, 100, shape)
    trained, losses = our_losses(model, config.optimizer, 100, shape)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(
        trained.lm_head.kernel[...].T, network.head.weight.detach().numpy(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_sgd_with_momentum_and_decay_is_pytorchs():
    config = load_config(["optimizer=sgd", "optimizer.weight_decay=0.01", "optimizer.learning_rate=0.3"]).optimizer
    model = filled(small("babygpt"), CHARACTERS)
    network = torch_gpt.TorchGPT.like(model)
    sgd = torch.optim.SGD(network.parameters(), lr=0.3, momentum=config.momentum, weight_decay=0.01)
    expected = torch_losses(network, sgd, config, 30, (4, 8))
    np.testing.assert_allclose(our_losses(model, config, 30, (4, 8))[1], expected, rtol=1e-5)
