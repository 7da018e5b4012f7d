"""Each rung of the ladder beside the one below: a point at which it is that, or why there is none."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder import filled, logits_of, preset

from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.models.bigram import Bigram
from babyjax.models.grow import grow
from babyjax.training.step import sum_nats
from babyjax.trees import map_named, named_arrays

V = 37


def assert_same_function(small, large, length=8):
    tokens = jax.random.randint(jax.random.key(5), (4, length), 0, V)
    expected = logits_of(small, tokens)
    chex.assert_trees_all_close(
        logits_of(large, tokens), expected, atol=2e-5 * max(1.0, float(jnp.abs(expected).max()))
    )


SMALL = {"block_size": 8, "n_embd": 32, "n_layer": 2, "unroll": 1}
WIDE = {"n_embd": 64, "head_size": 8}
SQUARED = {"activation": "relu2"}
TALL = {"block_size": 16, "n_embd": 64, "n_layer": 4, "n_head": 4}


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("lower", "changes", "upper", "upper_changes"),
    [
        ("babygpt", {}, "babygpt-v2-position", {}),  # the table is 0
        slow("babygpt-v2-position", {}, "babygpt-v7-residual", {}),  # the blocks are silent
        slow("babygpt-v3-attention", {}, "babygpt-v4-multihead", {"n_head": 1}),  # one head
        slow("babygpt-v4-multihead", {}, "babygpt-v5-feedforward", {}),  # ReLU where it is the identity
        slow("babygpt-v5-feedforward", {}, "babygpt-v6-blocks", {"n_layer": 1}),  # one block
        slow("babygpt-v7-residual", {}, "babygpt-v8-projection", {}),  # projections are the identity
        slow("babygpt-v2-position", {}, "babygpt-v8-projection", {}),
        slow("babygpt-v9-layernorm", {}, "babygpt-v10-dropout", {}),  # dropout has no parameters
        slow("babygpt-v10-dropout", {}, "babygpt-v11", TALL),  # copies, longer heads, more units, more blocks
        ("babygpt", {"n_embd": 5, "head_bias": False}, "babygpt", {"n_embd": 15}),
        slow("babygpt", {"n_embd": 5}, "babygpt-v2-position", {"n_embd": 10, "block_size": 8}),
        slow("gpt2", TALL | {"vocab_size": V}, "gpt2", TALL | {"vocab_size": V, "n_layer": 6}),
        slow("babygpt-v13-rotary", SMALL, "babygpt-v14-rmsnorm", SMALL),  # the residual is centered
        slow("babygpt-v9-layernorm", {}, "babygpt-v9-layernorm", {"norm": "rms", "qkv_bias": True}),
        slow("babygpt-v9-layernorm", {"bias": False, "head_bias": False}, "babygpt-v9-layernorm", {"norm": "rms"}),
        slow("babygpt", {"norm": "layer"}, "babygpt", {"norm": "rms"}),
        slow("babygpt-v16-gqa", SMALL, "babygpt-v15-swiglu", SMALL),  # shared keys and values are copied
        slow("babygpt-v16-gqa", SMALL | {"n_kv_head": 1}, "babygpt-v16-gqa", SMALL | {"n_head": 8, "head_size": 8}),
        slow("babygpt-v14-rmsnorm", SMALL, "babygpt-v14-rmsnorm", SMALL | {"gated": True}),  # what is gated is 1
        slow(
            "babygpt-v14-rmsnorm", SMALL | SQUARED, "babygpt-v14-rmsnorm", SMALL | {"gated": True, "activation": "relu"}
        ),
        slow(
            "babygpt-v15-swiglu",
            SMALL,
            "babygpt-v15-swiglu",
            SMALL | {"bias": True, "qkv_bias": True, "head_bias": True},
        ),
        slow("babygpt-v15-swiglu", SMALL | {"tied": True}, "babygpt-v15-swiglu", SMALL | WIDE),  # an untied head
        slow("babygpt-v17-qknorm", SMALL, "babygpt-v17-qknorm", SMALL | WIDE | {"n_layer": 3}),
        slow(
            "babygpt-v2-position",
            {"position": "none", "head_bias": False},
            "babygpt-v15-swiglu",
            {"n_embd": 32, "norm": "none"},
        ),
    ],
    ids=lambda part: part.removeprefix("babygpt-") if isinstance(part, str) else "",
)
def test_a_rung_can_be_the_one_below_and_learns_from_there(lower, changes, upper, upper_changes):
    lower, upper = preset(lower, **changes), preset(upper, **upper_changes)
    small = filled(lower, V)
    large = jax.jit(lambda model: grow(model, upper))(small)
    chex.assert_trees_all_equal_structs(large, jax.eval_shape(lambda: BabyGPT(upper, V, jax.random.key(0))))
    assert_same_function(small, large)
    # Training reaches all that was added, but for a feed-forward without projection under a residual.
    tokens, gradient_of = np.tile(np.arange(8, dtype=np.int32), (2, 1)), jax.jit(jax.grad(sum_nats))
    large, gradient = jax.device_get((large, gradient_of(large, tokens, tokens + 1)))
    moved = jax.tree.map(lambda leaf, slope: leaf - np.float32(0.01) * slope, large, gradient)
    slopes = named_arrays(gradient_of(moved, tokens, tokens + 1))
    still = {name for name, leaf in slopes.items() if not np.asarray(leaf).any()}
    assert still == (
        {"blocks/feed_forward/hidden/kernel", "blocks/feed_forward/hidden/bias"}
        if (upper.residual and not upper.projection and not lower.n_layer)
        else set()
    )


@pytest.mark.slow
def test_growth_goes_on_from_rung_to_rung():
    first = filled(preset("babygpt"), V)
    third = jax.jit(lambda model: grow(grow(model, "babygpt-v2-position"), "babygpt-v8-projection"))(first)
    assert_same_function(first, third)


def test_copies_are_told_apart():
    """Equal copies with equal readers would stay equal in training."""
    small = filled(preset("babygpt", n_embd=4), V)
    large = grow(small, preset("babygpt", n_embd=8))
    one, two = np.split(np.asarray(large.token_embedding.embedding[...]), 2, axis=1)
    np.testing.assert_array_equal(one, two)
    one, two = np.split(np.asarray(large.lm_head.kernel[...]), 2)
    assert np.abs(one - two).min() > 0
    np.testing.assert_allclose(one + two, small.lm_head.kernel[...], atol=1e-6)


@pytest.mark.parametrize(
    ("lower", "upper", "reason"),
    [
        (preset("babygpt-v2-position"), "babygpt-v3-attention", "mixes in every token it sees"),
        (preset("gpt-tiny-2019"), "babygpt-v13-rotary", "its positions are learned, not rotary"),
        (preset("babygpt-v14-rmsnorm"), "babygpt-v15-swiglu", "head_bias would shrink"),
        (
            preset("babygpt-v14-rmsnorm"),
            preset("babygpt-v15-swiglu", qkv_bias=True, bias=True, head_bias=True, feed_forward=4),
            "activation is gelu, not silu with a gate",
        ),
        (preset("babygpt-v15-swiglu"), "babygpt-v16-gqa", "2 heads share keys and values, 1 in this one"),
        (preset("babygpt-v16-gqa"), "babygpt-v17-qknorm", "takes away their length"),
        (preset("babygpt-v14-rmsnorm"), preset("babygpt-v13-rotary", qkv_bias=True), "norm=rms is not norm=layer"),
        (
            preset("babygpt-v13-rotary"),
            preset("babygpt-v14-rmsnorm", qkv_bias=False),
            "need head_bias=true, and with blocks",
        ),
        (preset("babygpt-v13-rotary"), preset("babygpt-v14-rmsnorm", norm_eps=1e-6), "norm_eps is 1e-05, not 1e-06"),
        (
            preset("babygpt-v13-rotary", bias=False),
            preset("babygpt-v14-rmsnorm", tied=True),
            "a tied head is the embedding",
        ),
        (preset("babygpt-v13-rotary"), preset("babygpt-v13-rotary", bias=False), "bias would shrink"),
        (
            preset("babygpt-v13-rotary"),
            preset("babygpt-v13-rotary", rotary_base=5e5),
            "rotary_base is 10000, not 500000",
        ),
        (preset("babygpt-v13-rotary"), preset("babygpt-v13-rotary", head_size=64), "bind a head to its size of 32"),
        (preset("babygpt"), preset("babygpt", logit_cap=30.0), "bounded by 0, those of the larger one by 30"),
        (
            preset("babygpt-v13-rotary", tied=True),
            preset("babygpt-v14-rmsnorm", tied=True),
            "a tied head needs it as it is",
        ),
        (
            preset("babygpt-v7-residual", norm="layer", qkv_bias=True),
            preset("babygpt-v8-projection", norm="rms", qkv_bias=True),
            "takes projections",
        ),
        (
            preset("babygpt-v3-attention"),
            "babygpt-v4-multihead",
            "heads of size 8 only of rank 8",
        ),
        (preset("babygpt-v5-feedforward"), "babygpt-v6-blocks", "mixes in every token it sees"),
        (preset("babygpt-v6-blocks"), "babygpt-v7-residual", "only in the limit of large weights"),
        (preset("babygpt-v8-projection"), "babygpt-v9-layernorm", "an added norm removes the length"),
        (preset("babygpt-v9-layernorm"), "gpt-tiny-2019", "activation is relu, not gelu"),
        (
            preset("babygpt-v9-layernorm"),
            preset("babygpt-v9-layernorm", n_embd=48),
            "n_embd=48 is not a multiple of 32",
        ),
        (preset("babygpt", n_embd=0), "babygpt", "n_embd=32 is not a multiple of 0"),
        (
            preset("babygpt-v9-layernorm"),
            "babygpt-v8-projection",
            "norm=layer is not norm=none",
        ),
        (preset("babygpt-v9-layernorm"), preset("babygpt-v9-layernorm", n_layer=2), "n_layer would shrink from 3 to 2"),
        (preset("babygpt-v9-layernorm"), preset("babygpt-v9-layernorm", n_head=2), "n_head would shrink from 4 to 2"),
        (preset("babygpt-v7-residual"), preset("babygpt-v7-residual", n_embd=64, n_head=8), "has a fixed place"),
        (preset("babygpt"), preset("babygpt", vocab_size=50), "room for 37 tokens, the larger one for 50"),
        (preset("babygpt", head_bias=False), preset("babygpt", tied=True), "a tied head is the embedding"),
        (preset("babygpt-v4-multihead"), preset("babygpt-v5-feedforward", activation="gelu"), "single block with ReLU"),
        (
            preset("babygpt-v4-multihead", norm="layer"),
            preset("babygpt-v5-feedforward", norm="layer"),
            "before a head with a bias, no norm and no tying",
        ),
        (
            preset("babygpt-v4-multihead", tied=True),
            preset("babygpt-v5-feedforward", tied=True),
            "before a head with a bias, no norm and no tying",
        ),
    ],
)
def test_the_reason_is_given_if_there_is_no_such_point(lower, upper, reason):
    with pytest.raises(ConfigError, match=reason):
        grow(filled(lower, V), upper)


def test_only_networks_grow_and_only_into_networks():
    with pytest.raises(ConfigError, match="only networks of the ladder can grow, not a Bigram"):
        grow(Bigram(jnp.zeros((3, 3), jnp.int32)), "babygpt")
    with pytest.raises(ConfigError, match="model=bigram is not a network"):
        grow(filled(preset("babygpt"), V), "bigram")
    with pytest.raises(ConfigError, match="unknown model 'babygpt-v99'"):
        grow(filled(preset("babygpt"), V), "babygpt-v99")


# Why there is no such point.


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=3)
def test_v3_cannot_be_v2_since_its_attention_depends_on_every_token_it_tells_apart(seed):
    """Attention weights are positive, so its second output is a mean, strictly between, of what it says of two tokens.

    Were it the same whatever the first token is, all that is said of first tokens would lie on one line through it. v2
    says of the first tokens what is on no line, and its second output knows nothing of the first token. A second block
    without residual, v6, would have to pass on what it reads in the same way.
    """
    tokens = jnp.stack([jnp.arange(V), jnp.full(V, 3)], axis=1)
    below = np.asarray(logits_of(filled(preset("babygpt-v2-position"), V, seed), tokens))
    np.testing.assert_allclose(below[:, 1], below[:1, 1].repeat(V, axis=0), atol=1e-6)
    lines = np.linalg.svd(below[:, 0] - below[0, 1], compute_uv=False)
    assert lines[1] > 0.1 * lines[0]

    model = filled(preset("babygpt-v3-attention"), V, seed)
    first, second = np.moveaxis(np.asarray(logits_of(model, tokens), np.float64), 1, 0)
    x = model.token_embedding.embedding[3] + model.position_embedding.embedding[1]
    value = x @ model.blocks.attention.value.kernel[0]
    alone = np.asarray(model.head(value[None, None]), np.float64)[0, 0]
    share = ((second - alone) * (first - alone)).sum(axis=1) / np.square(first - alone).sum(axis=1)
    assert ((share > 0) & (share < 1)).all()
    np.testing.assert_allclose(second, alone + share[:, None] * (first - alone), atol=1e-5)
    away = np.abs(second[:, None] - second).max(axis=2)
    assert away[~np.eye(V, dtype=bool)].min() > 1e-4


def test_v4_cannot_be_v3_since_a_head_scores_by_a_matrix_of_its_width():
    """The weights of attention are the scores up to one number a query, and so is their double-centred table."""

    def ranks(config):
        model = filled(config, V)
        x = np.asarray(model.token_embedding.embedding[...], np.float64)
        attention = model.blocks.attention
        q, k = (x @ np.asarray(part.kernel[0], np.float64) for part in (attention.query, attention.key))
        heads = [np.split(part, config.n_head, axis=1) for part in (q, k)]
        tables = [q @ k.T for q, k in zip(*heads, strict=True)]
        return {np.linalg.matrix_rank(t - t.mean(axis=0) - t.mean(axis=1)[:, None] + t.mean()) for t in tables}

    assert ranks(preset("babygpt-v3-attention")) == {32}
    assert ranks(preset("babygpt-v4-multihead")) == {8}


def test_v7_is_v6_in_the_limit_where_what_is_added_drowns_what_it_is_added_to():
    below = filled(preset("babygpt-v6-blocks"), V)
    tokens = jax.random.randint(jax.random.key(5), (4, 8), 0, V)
    expected = logits_of(below, tokens)

    def distance(times):
        """Every branch is `times` as large as what it is added to; what reads it divides again."""
        scales = times ** (2.0 * jnp.arange(3))[:, None, None]  # of what a block reads
        parts = named_arrays(below)
        for name in ("query", "key"):
            parts[f"blocks/attention/{name}/kernel"] /= scales
        parts["blocks/attention/value/kernel"] *= times
        parts["blocks/feed_forward/hidden/kernel"] *= times
        parts["blocks/feed_forward/hidden/bias"] *= times**2 * scales[..., 0]
        parts["lm_head/kernel"] /= times**6
        above = filled(preset("babygpt-v7-residual"), V)
        above = map_named(lambda name, _: parts[name], above)
        return float(jnp.abs(logits_of(above, tokens) - expected).max())

    near, nearer, nearest = map(distance, (1e2, 1e3, 1e4))
    assert near / nearer == pytest.approx(10, rel=0.3)
    assert nearer / nearest == pytest.approx(10, rel=0.3)


def test_v9_cannot_be_v8_since_its_norm_takes_a_dimension_out():
    tokens = jax.random.randint(jax.random.key(5), (40, 8), 0, V)

    def singular_values(name):
        logits = np.asarray(logits_of(filled(preset(name), V), tokens), np.float64).reshape(-1, V)
        return np.linalg.svd(logits - logits.mean(axis=0), compute_uv=False)

    below, above = singular_values("babygpt-v8-projection"), singular_values("babygpt-v9-layernorm")
    # A width of 32 gives v8 32 directions, and v9 one less.
    assert (below[31] / below[0] > 1e-3, below[32] / below[0] < 1e-5) == (True, True)
    assert (above[30] / above[0] > 1e-3, above[31] / above[0] < 1e-5) == (True, True)
