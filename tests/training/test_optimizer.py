from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ladder import filled, small

from babyjax import Hyper, init_state, make_advance
from babyjax.models import make_model
from babyjax.options import load_config
from babyjax.recipes import OPTIMIZERS
from babyjax.training.optimizer import kernels, make_optimizer, schedule_shape
from babyjax.trees import named_arrays

V = 11


def norm_of(tree):
    return np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def options(*arguments):
    return load_config(list(arguments)).optimizer


def network(name) -> Any:  # optax's types do not know that a module is a pytree
    return filled(small(name), V)


def random_gradient(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), model)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)]
)
def test_schedules_rise_by_equal_steps_then_fall_to_the_end(schedule, middle, end):
    config = options(f"optimizer.schedule={schedule}", "optimizer.warmup_steps=10", "optimizer.final_fraction=0.1")
    shape = np.array([schedule_shape(config, 110, step) for step in range(111)])
    np.testing.assert_allclose(shape[:11], [*np.arange(1, 11) / 10, 1.0], rtol=1e-5)
    assert shape[60] == pytest.approx(middle, abs=1e-6)
    assert shape[110] == pytest.approx(end, abs=1e-6)
    assert np.all(np.diff(shape[10:]) <= 1e-7)


def test_a_cosine_is_a_cosine():
    config = options("optimizer.schedule=cosine")
    shape = np.array([schedule_shape(config, 90, step) for step in (0, 30, 60)])
    np.testing.assert_allclose(shape, [1.0, 0.75, 0.25], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_schedule_multiplies_the_rate_whatever_it_is(name):
    """An update at the end is `final_fraction` times that at the peak, for both rates of muon too."""
    model = network("babygpt-v6-blocks")
    arguments = (f"optimizer={name}", "optimizer.weight_decay=0")
    whole = make_optimizer(options(*arguments), 10)
    ending = make_optimizer(options(*arguments, "optimizer.schedule=linear", "optimizer.final_fraction=0.25"), 10)
    gradient = random_gradient(model)
    states = whole.init(model), ending.init(model)
    first = second = None
    for _ in range(11):
        (first, one), (second, other) = (
            optimizer.update(gradient, state, model) for optimizer, state in zip((whole, ending), states, strict=True)
        )
        states = one, other
    for name, update in named_arrays(second).items():
        np.testing.assert_allclose(update, 0.25 * named_arrays(first)[name], rtol=1e-4, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["gpt2", "babygpt-v10-dropout"])
@pytest.mark.parametrize("decay", ["all", "kernels"])
@pytest.mark.slow
def test_parameters_that_do_not_decay_stay_without_a_gradient(name, decay):
    model = network(name)
    optimizer = make_optimizer(options(f"optimizer.decay={decay}", "optimizer.weight_decay=0.5"), 10)
    zero = jax.tree.map(jnp.zeros_like, model)
    updates, _ = optimizer.update(zero, optimizer.init(model), model)
    moved = {name for name, update in named_arrays(updates).items() if np.asarray(update).any()}
    names = set(named_arrays(model))
    assert moved == (names if decay == "all" else {name for name in names if name.endswith("kernel")})
    assert decay == "all" or not {"token_embedding", "norm", "bias"} & {
        part for name in moved for part in name.split("/")
    }


def test_the_gradient_is_clipped_to_its_norm():
    model = network("babygpt")
    gradient = jax.tree.map(lambda leaf: np.full_like(leaf, 100), model)
    plain = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=1")
    for clip, norm in ((2.5, 2.5), (1e9, norm_of(gradient))):
        optimizer = make_optimizer(options(*plain, f"optimizer.clip_norm={clip}"), 10)
        updates = jax.jit(lambda chosen=optimizer: chosen.update(gradient, chosen.init(model), model)[0])()
        assert float(norm_of(updates)) == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (base, _) in OPTIMIZERS.items() if not isinstance(base, str)])
def test_every_optimizer_learns(name):
    config = small("babygpt-v9-layernorm", n_layer=1)
    model = jax.jit(lambda key: make_model(config, V, key))(jax.random.key(0))
    tokens = jnp.tile(jnp.arange(V), 40)
    chosen = options(f"optimizer={name}", "optimizer.warmup_steps=10")
    state = jax.jit(lambda model: init_state(model, make_optimizer(chosen, 60)))(model)
    advance = make_advance(lambda rate: make_optimizer(chosen, 60, rate), 8, 8)
    _, losses = advance(state, tokens, 60, Hyper(0, chosen.learning_rate))
    assert float(losses[55:60].mean()) < 0.7 * float(losses[0])


@pytest.mark.slow
def test_muon_takes_the_kernels_of_blocks_and_adam_the_rest():
    """The singular values of a step are those of the gradient after five steps of Muon's polynomial."""
    model = network("babygpt-v9-layernorm")
    optimizer = make_optimizer(options("optimizer=muon", "optimizer.weight_decay=0"), 10)
    adam = optax.adam(3e-3)
    gradient, state, adam_state = random_gradient(model), optimizer.init(model), adam.init(model)
    first, updates, expected = named_arrays(gradient), None, None
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, model)
        expected, adam_state = adam.update(gradient, adam_state, model)
        gradient = jax.tree.map(lambda leaf: -0.3 * leaf, gradient)
    for name, update in named_arrays(updates).items():
        if "blocks" in name and name.endswith("kernel"):
            for layer, slope in zip(np.asarray(update), np.asarray(first[name], np.float64), strict=True):
                values = np.linalg.svd(slope, compute_uv=False) / np.linalg.norm(slope)
                for _ in range(5):
                    values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
                spectrum = np.linalg.svd(layer, compute_uv=False)
                assert np.median(spectrum) > 0.5 * spectrum.max(), name
                np.testing.assert_allclose(spectrum / spectrum.max(), np.sort(values)[::-1] / values.max(), atol=1e-3)
        else:
            np.testing.assert_allclose(update, named_arrays(expected)[name], rtol=1e-5, err_msg=name)


def test_kernels_are_the_matrices_of_linear_layers():
    named = named_arrays(kernels(filled(small("gpt2"), V)))
    assert {name.split("/")[-2] for name, chosen in named.items() if chosen} == {
        "query",
        "key",
        "value",
        "projection",
        "hidden",
    }
