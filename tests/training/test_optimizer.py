import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, small

from babyjax.config import load_config
from babyjax.models import make_model
from babyjax.schema import GROUPS
from babyjax.training.optimizer import kernels, make_optimizer, make_schedule
from babyjax.training.step import init_state, make_advance
from babyjax.trees import named_arrays

V = 11


def norm_of(tree):
    return np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def options(*arguments):
    return load_config(list(arguments)).optimizer


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)]
)
def test_schedules_rise_by_equal_steps_then_fall_to_the_end(schedule, middle, end):
    config = options(f"optimizer.schedule={schedule}", "optimizer.warmup_steps=10", "optimizer.final_learning_rate=0.1")
    rates = np.array([make_schedule(config, 110, 1.0)(step) for step in range(111)])
    np.testing.assert_allclose(rates[:11], [*np.arange(1, 11) / 10, 1.0], rtol=1e-5)
    assert rates[60] == pytest.approx(middle, abs=1e-6)
    assert rates[110] == pytest.approx(end, abs=1e-6)
    assert np.all(np.diff(rates[10:]) <= 1e-7)


def test_a_cosine_is_a_cosine():
    config = options("optimizer.schedule=cosine")
    rates = np.array([make_schedule(config, 90, 2.0)(step) for step in (0, 30, 60)])
    np.testing.assert_allclose(rates, [2.0, 1.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "babygpt-v10-dropout"])
@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_what_does_not_decay_stays_where_there_is_no_gradient(name, decay):
    model = filled(small(name), V)
    optimizer = make_optimizer(options(f"optimizer.decay={decay}", "optimizer.weight_decay=0.5"), 10)
    nothing = jax.tree.map(jnp.zeros_like, model)
    updates, _ = optimizer.update(nothing, optimizer.init(model), model)
    moved = {name for name, update in named_arrays(updates).items() if np.asarray(update).any()}
    names = set(named_arrays(model))
    assert moved == (names if decay == "all" else {name for name in names if name.endswith("kernel")})
    assert decay == "all" or not {"token_embedding", "norm", "bias"} & {
        part for name in moved for part in name.split("/")
    }


def test_the_gradient_is_clipped_to_its_norm():
    model = filled(small("babygpt"), V)
    gradient = jax.tree.map(lambda leaf: 100 * jnp.ones_like(leaf), model)
    plain = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=1")
    for clip, norm in ((2.5, 2.5), (1e9, norm_of(gradient))):
        optimizer = make_optimizer(options(*plain, f"optimizer.clip_norm={clip}"), 10)
        updates, _ = optimizer.update(gradient, optimizer.init(model), model)
        assert float(norm_of(updates)) == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("name", sorted(GROUPS["optimizer"]))
def test_every_optimiser_learns(name):
    config = small("babygpt-v10-dropout")
    model = jax.jit(lambda key: make_model(config, V, key))(jax.random.key(0))
    tokens = jnp.tile(jnp.arange(V), 40)
    optimizer = make_optimizer(options(f"optimizer={name}", "optimizer.warmup_steps=10"), 60)
    _, losses = make_advance(optimizer, 0, 8, 8)(init_state(model, optimizer), tokens, 60)
    assert float(losses[55:60].mean()) < 0.7 * float(losses[0])


def test_muon_takes_the_matrices_of_the_blocks_and_adam_the_rest():
    """A step of Muon is orthogonal, whatever the size of the gradient: its singular values are about equal."""
    model = filled(small("babygpt-v9-layernorm"), V)
    optimizer = make_optimizer(options("optimizer=muon", "optimizer.weight_decay=0"), 10)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), model)
    updates, _ = optimizer.update(gradient, optimizer.init(model), model)
    for name, update in named_arrays(updates).items():
        if "blocks" in name and name.endswith("kernel"):
            for layer in np.asarray(update):
                spectrum = np.linalg.svd(layer, compute_uv=False)
                assert spectrum.min() > 0.3 * spectrum.max(), name
        else:
            # The first step of Adam, with Nesterov's momentum, is as long for every number.
            np.testing.assert_allclose(np.abs(update), np.abs(update).mean(), rtol=0.01, err_msg=name)


def test_kernels_are_the_matrices_of_linear_layers():
    named = named_arrays(kernels(filled(small("gpt2"), V)))
    assert {name.split("/")[-2] for name, chosen in named.items() if chosen} == {
        "query_key_value",
        "projection",
        "hidden",
    }
