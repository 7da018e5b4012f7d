"""Every fast form beside its reference: the same values and the same gradients."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.models import make_model, ops
from babyjax.models.layers import dropout
from babyjax.models.ops import KeyValueCache
from babyjax.recipes import presets


def values_and_gradients(function):
    """Compile the value of a function and the gradient of a sum that weighs each of its outputs differently."""

    def total(floats, *rest):
        y = function(*floats, *rest)
        return (jnp.cos(jnp.arange(y.size, dtype=jnp.float32)) * y.reshape(-1)).sum(), y

    return jax.jit(jax.grad(total, has_aux=True))


def assert_equal(fast, reference, *floats):
    ours, theirs = (values_and_gradients(function)(floats) for function in (fast, reference))
    chex.assert_trees_all_close(ours, theirs, atol=2e-5, rtol=2e-5)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("width", [4, 2])  # wide and tall kernels
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3), (0, 3)])
def test_matmul(shape, width):
    assert_equal(ops.matmul, ops.matmul_reference, normal(*shape), normal(3, width, seed=1))


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", True), ("gpu", False)])
def test_barriers_are_for_a_cpu(monkeypatch, platform, barriers):
    monkeypatch.setattr(ops, "target", lambda: SimpleNamespace(platform=platform))
    for function, x in ((ops.computed_once, normal(2, 3)), (lambda x: ops.matmul(normal(4, 3), x), normal(3, 2))):
        gradient = jax.make_jaxpr(jax.grad(lambda x, function=function: jnp.sin(function(x)).sum()))(x)
        assert ("optimization_barrier" in str(gradient)) == barriers


def test_the_gradient_of_a_tall_kernel_has_its_precision():
    x, kernel = normal(5, 64).astype(jnp.bfloat16), normal(64, 4, seed=1).astype(jnp.bfloat16)
    ours, theirs = (
        jax.jit(jax.grad(lambda x, kernel, form=form: jnp.sin(form(x, kernel)).sum(), argnums=(0, 1)))(x, kernel)
        for form in (ops.matmul, ops.matmul_reference)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(
    ("rows", "columns", "platform", "dtype", "is_row"),
    [
        ((2, 4), ops.WIDE, "cpu", None, True),
        ((2, 4), ops.WIDE, "cpu", "float32", True),
        ((2, 4), ops.WIDE, "gpu", None, False),
        ((2, 4), ops.WIDE - 1, "cpu", None, False),
        ((7,), ops.WIDE, "cpu", None, False),
        ((), 3, "cpu", None, False),
        ((0,), 3, "cpu", None, False),
    ],
)
def test_a_bias_is_a_row_of_the_kernel_of_a_large_product_on_a_cpu(monkeypatch, rows, columns, platform, dtype, is_row):
    monkeypatch.setattr(ops, "target", lambda: SimpleNamespace(platform=platform))
    fast, reference = (partial(form, dtype=dtype) for form in (ops.affine, ops.affine_reference))
    arguments = normal(*rows, 2), normal(2, columns, seed=1), normal(columns, seed=2)
    assert ("concatenate" in str(jax.make_jaxpr(fast)(*arguments))) == is_row
    assert_equal(fast, reference, *arguments)


def test_a_bias_is_not_rounded_to_the_precision_of_the_factors():
    x, kernel = (normal(*shape).astype(jnp.bfloat16) for shape in ((8, 2), (2, ops.WIDE)))
    bias = normal(ops.WIDE, seed=2)
    chex.assert_trees_all_equal(
        ops.affine(x, kernel, bias, "float32") - bias, ops.matmul(x, kernel, "float32") + bias - bias
    )


@pytest.mark.parametrize("rows", [(), (0,), (ops.ROWS_TOGETHER - 1,), (2, ops.ROWS_TOGETHER)])
def test_matmuls(rows):
    def joined(form):
        return lambda x, *kernels: jnp.concatenate([jnp.sin(y) for y in form(x, kernels)], axis=-1)

    kernels = [normal(3, width, seed=width) for width in (4, 1, 2)]
    assert_equal(joined(ops.matmuls), joined(ops.matmuls_reference), normal(*rows, 3), *kernels)


def test_matmul_can_return_more_precision_than_it_reads():
    x, kernel = normal(2, 5, 64).astype(jnp.bfloat16), normal(64, 4, seed=1).astype(jnp.bfloat16)
    for dtype in (None, "float32"):
        y, expected = ops.matmul(x, kernel, dtype), ops.matmul_reference(x, kernel, dtype)
        chex.assert_trees_all_equal_shapes_and_dtypes(y, expected)
        chex.assert_trees_all_close(y, expected, rtol=1e-2 if dtype is None else 1e-6)
    assert y.dtype == jnp.float32


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_the_gradient_of_a_product_in_more_precision_is_that_of_its_factors(monkeypatch, platform):
    """On a GPU with columns of zeros to a whole tile."""
    monkeypatch.setattr(ops, "target", lambda: SimpleNamespace(platform=platform))
    x, kernel = normal(5, 64).astype(jnp.bfloat16), normal(64, 4, seed=1).astype(jnp.bfloat16)
    function = jax.grad(lambda x, kernel, matmul: jnp.sin(matmul(x, kernel, "float32")).sum(), argnums=(0, 1))
    ours, theirs = (function(x, kernel, form) for form in (ops.matmul, ops.matmul_reference))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, atol=0.05, rtol=0.02)
    values = [form(x, kernel, "float32") for form in (ops.matmul, ops.matmul_reference)]
    chex.assert_trees_all_close(*values, rtol=1e-6)
    assert ops._with_whole_tiles(kernel).shape == (64, 64 if platform == "gpu" else 4)


def test_a_model_can_be_built_for_a_device_that_is_not_here():
    h100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
    with ops.compiled_for(h100):
        assert ops.choose_attention("bfloat16", 64) == "cudnn"
        assert ops.choose_attention("float32", 64) == "xla"
        model = jax.eval_shape(lambda: make_model(presets["gpt-tiny"].replace(dtype="bfloat16"), 65, jax.random.key(0)))
        assert model.config.attention == "cudnn"
    assert ops.target() == jax.devices()[0]
    assert ops.choose_attention("bfloat16", 64) == "xla"


@given(st.integers(0, 99), st.floats(0, 100))
def test_cross_entropy(seed, scale):
    rng = np.random.default_rng(seed)
    logits, targets = jnp.asarray(scale * rng.normal(size=(3, 2, 5)), jnp.float32), rng.integers(0, 5, (3, 2))
    fast, reference = (
        partial(form, targets=jnp.asarray(targets)) for form in (ops.cross_entropy, ops.cross_entropy_reference)
    )
    assert_equal(fast, reference, logits)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (4, 6), (2, 3, 1, 6)])
def test_normalize(shape):
    fast, reference = (
        lambda x, function=function: function(x, 1e-3) for function in (ops.normalize, ops.normalize_reference)
    )
    assert_equal(fast, reference, 3 + 2 * normal(*shape))


@pytest.mark.parametrize(
    ("shape", "groups", "rate"),
    [
        ((2, 8, 2, 4), 2, 0.0),
        ((1, 1, 1, 5), 1, 0.0),
        ((2, 5, 6, 4), 2, 0.0),
        ((2, 5, 6, 4), 2, 0.3),
        ((2, 5, 3, 4), 1, 0.3),
    ],
)
def test_attend(shape, groups, rate):
    drop = partial(dropout, rate=rate, key=jax.random.key(0)) if rate else None
    q, k, v = (normal(*shape[:2], heads, shape[3], seed=seed) for seed, heads in enumerate((shape[2], groups, groups)))
    assert_equal(partial(ops.attend, drop=drop), partial(ops.attend_reference, drop=drop), q, k, v)


def test_attention_weights_can_be_seen_and_changed():
    q, k, v = (normal(2, 5, heads, 4, seed=seed) for seed, heads in enumerate((6, 2, 2)))

    def first_token_only(weights):
        return jnp.zeros_like(weights).at[..., 0].set(weights.sum(axis=-1))

    for attend in (ops.attend, ops.attend_reference):
        y = jax.jit(partial(attend, see=first_token_only))(q, k, v)
        chex.assert_trees_all_close(y, jnp.broadcast_to(jnp.repeat(v[:, :1], 3, axis=2), y.shape), atol=1e-6)
    fast, reference = (partial(attend, see=jnp.square) for attend in (ops.attend, ops.attend_reference))
    assert_equal(fast, reference, q, k, v)


@given(st.integers(0, 99), st.integers(0, 100))
def test_products_of_rotated_queries_and_keys_depend_on_distances_alone(seed, start):
    q, k = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 1, 4, 2, 6)), jnp.float32)
    here, there = (
        jnp.einsum("bthk,bshk->bhts", *(ops.rotate(x, first + jnp.arange(4), 1e3) for x in (q, k)))
        for first in (0, start)
    )
    np.testing.assert_allclose(here, there, atol=1e-4)
    np.testing.assert_allclose(
        np.linalg.norm(ops.rotate(q, jnp.arange(4), 1e3), axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(ops.rotate(q, jnp.zeros(4, int), 1e3), q)


def test_a_rotation_is_that_of_complex_numbers():
    x, positions = normal(1, 3, 1, 4), np.array([0, 1, 7])
    turned = np.asarray(ops.rotate(x, jnp.asarray(positions), 100.0))
    numbers = np.asarray(x[..., :2]) + 1j * np.asarray(x[..., 2:])
    expected = numbers * np.exp(1j * positions[:, None, None] * np.array([1, 0.1]))
    np.testing.assert_allclose(turned[..., :2] + 1j * turned[..., 2:], expected, rtol=1e-5, atol=1e-6)


ATTENTIONS = [
    jax.jit(ops.attend),
    jax.jit(ops.attend_reference),
    jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)),  # what cuDNN computes
]


@given(st.integers(0, 99), st.sampled_from([(1, 1, 5), (8, 2, 4)]))
def test_attention_is_its_definition(seed, shape):
    length, count, size = shape
    q, k, v = np.random.default_rng(seed).normal(size=(3, 2, *shape)).astype(np.float32)
    expected = np.zeros((2, length, count, size))
    for row, time, head in np.ndindex(2, length, count):
        scores = k[row, : time + 1, head] @ q[row, time, head] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        expected[row, time, head] = weights @ v[row, : time + 1, head] / weights.sum()
    for attend in ATTENTIONS:
        np.testing.assert_allclose(attend(q, k, v), expected, atol=1e-5)


def test_attention_weights_are_dropped_after_they_are_normalized():
    q, k, v = (normal(1, 4, 2, 3, seed=seed) for seed in range(3))
    keys = jax.random.split(jax.random.key(1), 4000)
    outputs = jax.jit(jax.vmap(lambda key: ops.attend(q, k, v, partial(dropout, rate=0.3, key=key))))(keys)
    np.testing.assert_allclose(outputs.mean(axis=0), ops.attend(q, k, v), atol=0.1)
    # The first position reads one token: its output is that value over 1 - rate, or 0.
    first = np.asarray(outputs[:, 0, 0])
    share = (np.abs(first).max(axis=2) == 0).mean()
    assert share == pytest.approx(0.3, abs=0.03)
    kept = first[np.abs(first).max(axis=2) > 0]
    np.testing.assert_allclose(np.unique(kept.round(4), axis=0), np.unique((v[0, 0] / 0.7).round(4), axis=0), atol=1e-3)


@pytest.mark.parametrize("new", [1, 4])
def test_attend_cached(new):
    q, k, v = (normal(2, new, heads, 4, seed=seed) for seed, heads in enumerate((4, 2, 2)))
    keys, values = (normal(2, 2, 16, 4, seed=seed) for seed in (3, 4))

    def flat(attend):
        def call(q, k, v, keys, values, lengths):
            y, cache = attend(q, k, v, KeyValueCache(keys, values, lengths))
            return jnp.concatenate([part.reshape(-1) for part in (y, cache.keys, cache.values)])

        return values_and_gradients(call)

    ours, theirs = flat(ops.attend_cached), flat(ops.attend_cached_reference)
    for lengths in ([0, 3], [4, 7], [11, 8]):
        arguments = (q, k, v, keys, values), jnp.array(lengths)
        chex.assert_trees_all_close(ours(*arguments), theirs(*arguments), atol=2e-5, rtol=2e-5)


CACHED = jax.jit(ops.attend_cached)


@pytest.mark.parametrize("column", [0, 3, 4, 7, 8, 15])
def test_one_query_reads_the_columns_up_to_its_own_whatever_share_of_the_cache_is_used(column):
    q, k, v = (normal(1, 16, 2, 4, seed=seed) for seed in range(3))
    expected = ATTENTIONS[0](q, k, v)[:, column : column + 1]
    keys, values = (jnp.where(jnp.arange(16)[:, None] < column, part.swapaxes(1, 2), 1e3) for part in (k, v))
    now = slice(column, column + 1)
    ours, cache = CACHED(q[:, now], k[:, now], v[:, now], KeyValueCache(keys, values, jnp.array([column])))
    chex.assert_trees_all_close(ours, expected, atol=1e-5)
    chex.assert_trees_all_equal(cache.keys[:, :, column], k[:, column])


class Device:
    def __init__(self, platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0"):
        self.platform, self.device_kind, self.compute_capability = platform, device_kind, compute_capability


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "expected"),
    [
        (Device(), "bfloat16", 64, "cudnn"),
        (Device(device_kind="NVIDIA H100", compute_capability="9.0"), "bfloat16", 128, "cudnn"),
        (Device(), "float32", 64, "xla"),
        (Device(), "bfloat16", 36, "xla"),
        (Device(), "bfloat16", 136, "xla"),
        (Device(), "bfloat16", 0, "xla"),
        (Device(device_kind="NVIDIA T4", compute_capability="7.5"), "bfloat16", 64, "xla"),
        (Device(device_kind="AMD MI300", compute_capability="gfx942"), "bfloat16", 64, "xla"),
        (Device(platform="cpu"), "bfloat16", 64, "xla"),
        (Device(platform="tpu"), "bfloat16", 64, "xla"),
    ],
)
def test_cudnn_is_chosen_by_the_device_the_dtype_and_the_head_size(monkeypatch, device, dtype, head_size, expected):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert ops.choose_attention(dtype, head_size) == expected


def test_cudnn_is_asked_unless_weights_are_dropped(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **options: asked.append(options) or v)
    q, k, v = (normal(1, 4, 2, 3, seed=seed) for seed in range(3))
    chex.assert_trees_all_equal(ops.attend(q, k, v, implementation="cudnn"), v)
    assert asked == [{"is_causal": True, "implementation": "cudnn"}]
    chex.assert_trees_all_close(
        ops.attend(q, k, v, lambda w: w, implementation="cudnn"), ops.attend_reference(q, k, v), atol=1e-5
    )
    assert len(asked) == 1
