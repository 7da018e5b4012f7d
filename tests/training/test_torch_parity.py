"""The seed's script in PyTorch, beside ours: same start, same batches, same losses. Needs the `bench` extra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import BabyGPT, batch_at
from babyjax.config import load_config
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import init_state, make_advance

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the bench extra)")

V, STEPS = 65, 100


@pytest.mark.parametrize("bias", [True, False])
def test_the_first_100_losses_are_pytorchs(bias):
    config = load_config([])
    tokens = jnp.asarray(np.random.default_rng(0).zipf(1.3, 20_000) % V, jnp.int32)
    shape = (config.train.batch_size, config.model.block_size)
    model = BabyGPT(V, config.model.n_embd, bias=bias, key=jax.random.key(0))

    embedding = torch.nn.Embedding(V, config.model.n_embd)
    head = torch.nn.Linear(config.model.n_embd, V, bias=bias)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor(np.asarray(model.token_embedding.embedding[...])))
        head.weight.copy_(torch.tensor(np.asarray(model.lm_head.kernel[...])).T)
        if bias:
            head.bias.copy_(torch.tensor(np.asarray(model.lm_head.bias[...])))
    adamw = torch.optim.AdamW([*embedding.parameters(), *head.parameters()], lr=1e-2)
    theirs = []
    for step in range(STEPS):
        inputs, targets = (
            torch.tensor(np.asarray(part), dtype=torch.long) for part in batch_at(tokens, 1, step, *shape)
        )
        loss = torch.nn.functional.cross_entropy(head(embedding(inputs)).view(-1, V), targets.reshape(-1))
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        theirs.append(loss.item())

    optimizer = make_optimizer(config.optimizer, config.train.steps)
    advance = make_advance(optimizer, 1, *shape)
    state, ours = advance(init_state(model, optimizer), tokens, STEPS)
    np.testing.assert_allclose(ours[:STEPS], theirs, rtol=1e-5)
    np.testing.assert_allclose(state.model.lm_head.kernel[...].T, head.weight.detach().numpy(), rtol=1e-3, atol=1e-4)
