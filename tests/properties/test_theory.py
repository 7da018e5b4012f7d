"""What holds for every previous-token model, on random small corpora and parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from babyjax import (
    BabyGPT,
    BabyGPTConfig,
    Bigram,
    Hyper,
    PairCounts,
    Split,
    count_chunks,
    count_matrix,
    count_windows,
    fit_counts,
    init_state,
    load_config,
    make_advance,
)
from babyjax.counts.factors import Factors, balance, factors_of
from babyjax.counts.fit import dual_bound
from babyjax.counts.objective import Targets
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import sum_nats

V, D = 6, 3
texts = hnp.arrays(np.int32, 50, elements=st.integers(0, V - 1))
seeds = st.integers(0, 2**31 - 1)
compiled_sum_nats = jax.jit(sum_nats)


def random_model(seed, vocab_size=V, n_embd=D):
    return BabyGPT(BabyGPTConfig(n_embd=n_embd), vocab_size, jax.random.key(seed))


def loss_table(model):
    """loss(i, j) = -log q(j | i), float64[V, V]."""
    logits = np.asarray(model(jnp.arange(V)[None])[0], np.float64)
    return (
        np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        + logits.max(1, keepdims=True)
        - logits
    )


def with_factors(embedding, kernel, bias):
    """BabyGPT with given weights: embedding [V, D], kernel [D, V], bias [V]."""
    model = random_model(0, *embedding.shape)
    model.token_embedding.embedding = nnx.Param(jnp.asarray(embedding, jnp.float32))
    model.lm_head.kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))
    model.lm_head.bias = nnx.Param(jnp.asarray(bias, jnp.float32))
    return model


def inputs_and_targets(tokens):
    return jnp.asarray(tokens[None, :-1]), jnp.asarray(tokens[None, 1:])


def counts_of(tokens):
    return np.asarray(count_matrix(tokens, V), np.float64)


def entropy(counts):
    rows = counts.sum(axis=1, keepdims=True)
    return (counts[counts > 0] * np.log((rows / np.where(counts > 0, counts, 1))[counts > 0])).sum() / counts.sum()


@given(texts, seeds)
@pytest.mark.parametrize("kind", ["bigram", "babygpt"])
def test_1_the_counts_are_sufficient_for_the_loss(kind, tokens, seed):
    model = random_model(seed) if kind == "babygpt" else Bigram.from_tokens(tokens[:20], V, 0.5)
    over_text = compiled_sum_nats(model, *inputs_and_targets(tokens)) / (len(tokens) - 1)
    over_counts = (counts_of(tokens) * loss_table(model)).sum() / (len(tokens) - 1)
    assert float(over_text) == pytest.approx(over_counts, rel=1e-5)


@given(texts, texts)
def test_2_counting_is_additive_with_the_pair_at_the_seam(a, b):
    seam = np.zeros((V, V))
    seam[a[-1], b[0]] = 1
    both = counts_of(np.concatenate([a, b]))
    np.testing.assert_array_equal(both, counts_of(a) + counts_of(b) + seam)
    np.testing.assert_array_equal(both, count_chunks([a, b], V))
    assert both.sum() == len(a) + len(b) - 1
    ends = np.zeros(V)
    ends[a[0]] += 1
    ends[b[-1]] -= 1
    np.testing.assert_array_equal(both.sum(axis=1) - both.sum(axis=0), ends)


@given(texts, seeds)
def test_3_the_loss_is_the_entropy_plus_a_weighted_divergence_and_so_never_less(tokens, seed):
    counts, table = counts_of(tokens), loss_table(random_model(seed))
    loss = (counts * table).sum() / counts.sum()
    rows = counts.sum(axis=1)
    seen = rows > 0
    conditional = counts[seen] / rows[seen, None]
    log_ratio = np.log(np.where(conditional > 0, conditional, 1)) + np.where(conditional > 0, table[seen], 0)
    divergence = (conditional * log_ratio).sum(axis=1)
    assert (divergence >= -1e-6).all()
    assert loss == pytest.approx(entropy(counts) + rows[seen] @ divergence / counts.sum(), rel=1e-6)
    assert loss >= entropy(counts) - 1e-6


@pytest.mark.slow
@given(texts, seeds)
def test_4_gradients_follow_from_the_weighted_residual_and_unseen_rows_get_exactly_none(tokens, seed):
    tokens = np.where(tokens == 2, 1, tokens)  # token 2 never occurs
    model = random_model(seed)
    gradient = jax.grad(lambda model: compiled_sum_nats(model, *inputs_and_targets(tokens)) / (len(tokens) - 1))(model)
    counts = counts_of(tokens)
    rows = counts.sum(axis=1, keepdims=True)
    residual = (rows * np.exp(-loss_table(model)) - counts) / counts.sum()
    embedding, kernel = (
        np.asarray(p, np.float64) for p in (model.token_embedding.embedding[...], model.lm_head.kernel[...])
    )
    np.testing.assert_allclose(gradient.token_embedding.embedding[...], residual @ kernel.T, atol=1e-6)
    np.testing.assert_allclose(gradient.lm_head.kernel[...], (residual.T @ embedding).T, atol=1e-6)
    np.testing.assert_allclose(gradient.lm_head.bias[...], residual.sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(residual.sum(axis=1), 0, atol=1e-6)
    assert not gradient.token_embedding.embedding[...][2].any()


@given(texts)
@pytest.mark.parametrize("side", ["embedding", "kernel"])
def test_5_at_full_width_babygpt_set_from_the_counts_is_the_bigram(side, tokens):
    bigram = Bigram.from_tokens(tokens, V, smoothing=1.0)
    log_p = bigram(jnp.arange(V)[None])[0]
    factors = (log_p, jnp.eye(V)) if side == "embedding" else (jnp.eye(V), log_p)
    babygpt = with_factors(*factors, bias=jnp.zeros(V))
    contexts = jnp.arange(V)[None]
    chex.assert_trees_all_close(jax.nn.softmax(babygpt(contexts)), jnp.exp(bigram(contexts)), rtol=2e-6)


def test_5_babygpt_trained_at_full_width_approaches_the_bigram(rng):
    chain = rng.dirichlet(np.ones(V), size=V)
    tokens = [0]
    for _ in range(3000):
        tokens.append(int(rng.choice(V, p=chain[tokens[-1]])))
    tokens = np.array(tokens, np.int32)
    counts = counts_of(tokens)
    config = load_config(["optimizer.learning_rate=3e-3", "optimizer.weight_decay=0"]).optimizer
    advance = make_advance(lambda rate: make_optimizer(config, 5000, rate), batch_size=64, block_size=16)
    state = init_state(random_model(0, V, V), make_optimizer(config, 5000))

    def gap(model):
        return (counts * loss_table(model)).sum() / counts.sum() - entropy(counts)

    assert gap(state.model) > 0.2
    state, _ = advance(state, jnp.asarray(tokens), 1000, Hyper(0, 3e-3))
    probabilities = np.exp(-loss_table(state.model))
    assert gap(state.model) < 5e-3
    np.testing.assert_allclose(probabilities, counts / counts.sum(axis=1, keepdims=True), atol=0.06)


@given(length=st.integers(8, 40), block_size=st.integers(1, 6), seed=seeds)
def test_7_random_windows_count_the_text_with_tapered_ends(length, block_size, seed):
    tokens = np.random.default_rng(seed).integers(0, V, length).astype(np.int32)
    windows, pairs = length - block_size, np.arange(length - 1)
    over_all_windows = sum(counts_of(tokens[start : start + block_size + 1]) for start in range(windows))
    taper = np.minimum(pairs, windows - 1) - np.maximum(pairs - block_size + 1, 0) + 1
    tapered = np.zeros((V, V))
    np.add.at(tapered, (tokens[:-1], tokens[1:]), taper)
    np.testing.assert_array_equal(over_all_windows, tapered)
    assert taper.sum() == windows * block_size


def test_7_counting_random_windows_has_that_expectation(rng):
    tokens, block_size, draws = rng.integers(0, V, 30).astype(np.int32), 8, 20_000
    counts = np.asarray(count_windows(tokens, V, 0, steps=draws // 32, batch_size=32, block_size=block_size))
    windows = len(tokens) - block_size
    expected = sum(counts_of(tokens[start : start + block_size + 1]) for start in range(windows)) / windows
    drawn = draws // 32 * 32
    assert counts.sum() == drawn * block_size
    np.testing.assert_allclose(counts / drawn, expected, atol=5 / drawn**0.5)


@given(seeds)
def test_8_what_the_predictions_and_the_logits_do_not_see(seed):
    keys = jax.random.split(jax.random.key(seed), 6)
    shapes = [(V, D), (D, V), (V,), (V,), (D,), (D,)]
    embedding, kernel, bias, r, v, a = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    contexts = jnp.arange(V)[None]
    logits = with_factors(embedding, kernel, bias)(contexts)
    probabilities = jax.nn.softmax(logits)
    # W + r 1^T
    chex.assert_trees_all_close(jax.nn.softmax(logits + r[None, :, None]), probabilities, atol=1e-5)
    # B + 1 v^T, B being the kernel's transpose
    shifted = with_factors(embedding, kernel + v[:, None], bias)(contexts)
    chex.assert_trees_all_close(jax.nn.softmax(shifted), probabilities, atol=1e-5)
    # (A + 1 a^T, b - B a) leaves the logits themselves
    moved = with_factors(embedding + a, kernel, bias - kernel.T @ a)(contexts)
    chex.assert_trees_all_close(moved, logits, atol=1e-4)


def pairs_of(tokens, vocab_size=V):
    """Its pair counts, all of it the training split."""
    return PairCounts.from_split(Split(tokens, tokens), vocab_size)


def rank_of(table):
    return np.linalg.matrix_rank(table - table.mean(1, keepdims=True), tol=1e-8)


@given(texts)
def test_6_centered_log_probabilities_have_a_rank_below_v_and_a_width_of_that_is_any_bigram(tokens):
    counts = counts_of(tokens) + 0.5
    log_p = np.log(counts / counts.sum(1, keepdims=True))
    assert rank_of(log_p) <= V - 1
    left, scale, right = np.linalg.svd(log_p - log_p.mean(1, keepdims=True))
    model = with_factors(left[:, : V - 1] * scale[: V - 1], right[: V - 1], np.zeros(V))
    np.testing.assert_allclose(loss_table(model), -log_p, atol=2e-5)


def test_6_a_width_of_v_minus_2_generically_is_not_any_bigram(rng):
    log_p = np.log(rng.dirichlet(np.ones(V), size=V))
    assert rank_of(log_p) == V - 1  # and with a bias too: what is left after a common row is of rank V - 1
    assert rank_of(log_p - log_p[0]) == V - 1


@given(seeds)
def test_9_the_gauge_leaves_the_logits_and_its_least_squares_are_the_nuclear_norm(seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, V, D))
    mix = random.normal(size=(D, D)) + 3 * np.eye(D)
    other = Factors(a @ mix, b @ np.linalg.inv(mix).T, None)
    np.testing.assert_allclose(other.logits(), a @ b.T, atol=1e-9)
    least = balance(other)
    np.testing.assert_allclose(least.embedding.T @ least.embedding, least.head.T @ least.head, atol=1e-9)
    nuclear = np.linalg.norm(a @ b.T, "nuc")
    assert ((least.embedding**2).sum() + (least.head**2).sum()) / 2 == pytest.approx(nuclear)
    assert ((other.embedding**2).sum() + (other.head**2).sum()) / 2 >= nuclear - 1e-9


@pytest.mark.parametrize(
    "widths", [(0, V - 1), pytest.param(tuple(range(V)), marks=pytest.mark.slow)], ids=["the ends", "all widths"]
)
def test_10_the_best_loss_falls_with_the_width_from_the_marginals_entropy_to_the_pairs(rng, widths):
    tokens = rng.integers(0, V, 60).astype(np.int32)
    pairs, counts = pairs_of(tokens), counts_of(tokens)
    best = [fit_counts(pairs, width, starts=6, tolerance=1e-9).objective for width in widths]
    marginal = counts.sum(0) / counts.sum()
    assert best[0] == pytest.approx(-(marginal[marginal > 0] * np.log(marginal[marginal > 0])).sum(), abs=1e-6)
    joint, outer = counts / counts.sum(), np.outer(counts.sum(1), counts.sum(0)) / counts.sum() ** 2
    information = (joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum()
    assert best[0] - entropy(counts) == pytest.approx(information, abs=1e-6)
    assert (np.diff(best) <= 1e-7).all()
    assert best[-1] == pytest.approx(entropy(counts), abs=1e-6)


@given(texts, st.floats(0.01, 0.5))
def test_11_label_smoothing_is_additive_smoothing_by_row(tokens, eps):
    counts = counts_of(tokens)
    totals = counts.sum(1, keepdims=True)
    seen = totals[:, 0] > 0
    smoothed_labels = (1 - eps) * counts[seen] / totals[seen] + eps / V
    added = counts[seen] + eps * totals[seen] / ((1 - eps) * V)
    np.testing.assert_allclose(smoothed_labels, added / added.sum(1, keepdims=True), atol=1e-12)


@given(texts, seeds)
def test_12_the_poisson_loss_is_the_models_plus_a_constant(tokens, seed):
    counts = counts_of(tokens)
    loss = loss_table(random_model(seed))
    totals = counts.sum(1, keepdims=True)
    mean = totals * np.exp(-loss)
    seen = totals[:, 0] > 0
    poisson = mean.sum() - (counts[seen] * np.log(mean[seen])).sum()
    constant = (totals[seen] - totals[seen] * np.log(totals[seen])).sum()
    assert poisson == pytest.approx((counts * loss).sum() + constant, rel=1e-5)


@given(texts, seeds)
def test_13_near_the_bigram_the_loss_is_half_the_weighted_variance_of_the_logits(tokens, seed):
    counts = counts_of(tokens) + 1
    weight, rows = counts.sum(1) / counts.sum(), counts / counts.sum(1, keepdims=True)
    delta = 1e-3 * np.random.default_rng(seed).normal(size=(V, V))
    logits = np.log(rows) + delta
    loss = weight @ np.log(np.exp(logits).sum(1)) - (weight[:, None] * rows * logits).sum()
    variance = (rows * delta**2).sum(1) - (rows * delta).sum(1) ** 2
    assert loss - entropy(counts) == pytest.approx(weight @ variance / 2, abs=1e-8)


def test_14_at_the_end_of_a_fit_residuals_are_orthogonal_and_the_marginal_is_met(rng):
    tokens = rng.integers(0, V, 400).astype(np.int32)
    counts = counts_of(tokens)
    factors = factors_of(fit_counts(pairs_of(tokens), D, tolerance=1e-12).model)
    predicted = np.exp(factors.logits())
    predicted /= predicted.sum(1, keepdims=True)
    weight, rows = counts.sum(1) / counts.sum(), counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(weight[:, None] * (predicted - rows) @ factors.head, 0, atol=1e-5)
    np.testing.assert_allclose(weight @ predicted, counts.sum(0) / counts.sum(), atol=1e-5)


@given(texts, seeds, st.floats(1e-4, 1.0))
def test_15_the_dual_is_below_every_penalized_loss(tokens, seed, penalty):
    targets, weight = Targets.of(pairs_of(tokens), 0.1).dense
    random = np.random.default_rng(seed)
    here, there = (Factors(a, b, None) for a, b in random.normal(size=(2, 2, V, V - 1)))

    def objective(factors):
        logits = factors.logits()
        loss = weight @ np.log(np.exp(logits).sum(1)) - (targets * logits).sum()
        return loss + penalty * np.linalg.norm(logits, "nuc")

    bound = dual_bound(here, targets, weight, penalty)
    assert bound <= objective(here) + 1e-9
    assert bound <= objective(there) + 1e-9
    assert bound <= objective(Factors(np.zeros((V, 1)), np.zeros((V, 1)), None)) + 1e-9


@pytest.mark.slow
def test_16_a_cycle_is_learned_at_a_width_of_two():
    tokens = np.tile(np.arange(V, dtype=np.int32), 20)
    result = fit_counts(pairs_of(tokens), 2, bias=False, starts=4)
    assert result.objective < 1e-5
    assert fit_counts(pairs_of(tokens), 1, bias=False, starts=4).objective > 0.1
