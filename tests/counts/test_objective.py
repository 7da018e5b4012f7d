"""The exact loss and its gradient, and what first-order descent does where the second order cannot help."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import V, random_pairs
from scipy.special import log_softmax

import babyjax.counts.fit as fit_module
from babyjax import PairCounts, fit_counts, split_tokens
from babyjax.counts import descent, objective
from babyjax.counts.descent import whiten
from babyjax.counts.factors import Factors
from babyjax.counts.fit import CountsProblem, plan_restarts
from babyjax.counts.objective import Targets, enable_x64


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_targets_are_the_smoothed_counts_however_they_are_asked_for(rng, monkeypatch, smoothing):
    pairs = random_pairs(length=40)
    counts = np.zeros((V, V))
    counts[pairs.current, pairs.following] = pairs.counts["train"]
    seen = counts.sum(1) > 0
    weight = counts.sum(1) / counts.sum()
    rows = (counts[seen] + smoothing) / (counts[seen] + smoothing).sum(1, keepdims=True)
    expected = np.zeros((V, V))
    expected[seen] = weight[seen, None] * rows

    targets = Targets.of(pairs, smoothing)
    np.testing.assert_allclose(targets.dense[0], expected, atol=1e-15)
    np.testing.assert_allclose(targets.dense[1], weight)
    logs = np.log(np.where(rows > 0, rows, 1))
    assert targets.entropy == pytest.approx(-(expected[seen] * logs).sum(), abs=1e-12)
    assert smoothing or targets.entropy == pytest.approx(pairs.entropy("train"), abs=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_the_loss_and_its_gradient_are_those_of_the_whole_matrix(rng, monkeypatch, bias):
    pairs = random_pairs(length=40)
    targets, penalty = Targets.of(pairs, 0.5), 0.1
    factors = Factors(rng.normal(size=(V, 3)), rng.normal(size=(V, 3)), rng.normal(size=V) if bias else None)

    def reference(factors):
        nats = -(targets.dense[0] * jax.nn.log_softmax(factors.logits(), axis=1)).sum()
        return nats + penalty / 2 * factors.squares()

    with enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(reference))(jax.tree.map(jnp.asarray, factors))
    for rows in (2, V):  # chunks of rows, of which the last is not full
        monkeypatch.setattr(objective, "CHUNK_CELLS", rows * V)
        loss, ours = targets.loss_and_gradient(factors, penalty)
        assert loss == pytest.approx(float(value), abs=1e-12)
        chex.assert_trees_all_close(ours, jax.tree.map(np.asarray, gradient), atol=1e-12)
    single, rounded = targets.loss_and_gradient(factors, penalty, np.float32)
    assert single == pytest.approx(loss, abs=1e-6)
    chex.assert_trees_all_close(rounded, ours, atol=1e-6)


def test_whitening_keeps_the_predictions(rng):
    """Of contexts that are seen; any other, here the last, becomes the mean of them."""
    targets = Targets.of(random_pairs(), 0.0)
    factors = Factors(rng.normal(size=(V, 3)), rng.normal(size=(V, 3)), rng.normal(size=V))
    white = whiten(factors, targets)
    before, after = (log_softmax(given.logits(), axis=1)[:-1] for given in (factors, white))
    np.testing.assert_allclose(after, before, atol=1e-8)
    np.testing.assert_allclose(white.embedding[-1], 0, atol=1e-12)
    one = (white.embedding.T * targets.context_weight) @ white.embedding
    two = (white.head.T * targets.unigram) @ white.head
    np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(one, np.diag(np.diag(one)), atol=1e-6)


def test_updates_draw_contexts_so_that_the_gradient_is_exact_on_average(rng, monkeypatch):
    monkeypatch.setattr(descent, "CONTEXTS", 9)
    monkeypatch.setattr(descent, "ROWS", 4)
    targets = Targets.of(random_pairs(vocab_size=30, length=20_000), 0.1)
    draws = descent.Draws(targets)
    expected, seeds = np.zeros((30, 30)), 200
    for seed in range(seeds):
        parts = (part.reshape(-1, part.shape[-1]) for part in draws(seed))
        for contexts, _, weight, base, place, value in zip(*parts, strict=True):
            rows = np.zeros(3 * 30)  # 9 contexts in 3 chunks
            np.add.at(rows, place, value)
            np.add.at(expected, contexts, rows.reshape(3, 30) + base[:, None])
            assert rows.sum() + 30 * base.sum() == pytest.approx(weight.sum(), rel=1e-5)
    expected /= seeds * descent.UPDATES_PER_DISPATCH
    np.testing.assert_allclose(expected.sum(1), targets.context_weight, rtol=0.1, atol=1e-5)
    np.testing.assert_allclose(expected, targets.dense[0], rtol=0.1, atol=1e-5)


@pytest.mark.slow
def test_without_the_second_order_a_fit_of_a_large_vocabulary_comes_as_near(monkeypatch):
    monkeypatch.setattr(descent, "UPDATES", 1000)
    monkeypatch.setattr(fit_module, "UPDATES", 1000)
    monkeypatch.setattr(descent, "CONTEXTS", 8)
    pairs = random_pairs(vocab_size=23)
    best = fit_counts(pairs, 4, smoothing=0.1, starts=3)
    monkeypatch.setattr(fit_module, "DENSE_CELLS", 0)
    result = fit_counts(pairs, 4, smoothing=0.1, starts=3)
    assert result.restarts == 1
    assert result.objective == pytest.approx(best.objective, abs=2e-3)
    assert "; the last 20 iterations of L-BFGS brought " in result.quality


@pytest.mark.slow
def test_a_long_fit_of_a_sparse_text_stays_finite_and_never_rises_by_much(rng, monkeypatch):
    # Most pairs occur once: unsmoothed, the best logits are infinite, and steps towards them know no length.
    monkeypatch.setattr(descent, "UPDATES", 500)
    monkeypatch.setattr(fit_module, "UPDATES", 500)
    vocab_size = 520
    chances = 1 / np.arange(1, vocab_size + 1)
    tokens = rng.choice(vocab_size, size=8000, p=chances / chances.sum()).astype(np.int32)
    tokens[:vocab_size] = np.arange(vocab_size)
    pairs = PairCounts.from_split(split_tokens(tokens), vocab_size)
    problem = CountsProblem(pairs, 2, plan_restarts(1, 0, 0.0, 0.0), tolerance=1e-9)
    position, objectives = problem.start(), []
    for _ in range(10):
        step = problem.advance(position)
        position = step.position
        objectives.append(step.objective)
    assert all(np.isfinite(np.asarray(part)).all() for part in position.descent.factors)
    assert objectives[-1] > pairs.entropy("train")
    assert max(np.diff(objectives)) < 1e-3
    assert objectives[-1] < objectives[0] - 0.01


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_gpt2s_vocabulary_is_fitted_without_a_dense_matrix():
    """Counts of 50,257 tokens are sparse and stay so: a dense float32 V x V alone would be 10 GB."""
    program = """
import numpy as np
from babyjax import PairCounts, Split, fit_counts
from babyjax.counts import descent, fit
for module in (descent, fit):
    module.UPDATES = module.UPDATES_PER_STEP = descent.UPDATES_PER_DISPATCH
tokens = np.random.default_rng(0).zipf(1.5, 6_000).clip(1, 50_257).astype(np.int32) - 1
pairs = PairCounts.from_split(Split(tokens[:5_400], tokens[5_400:]), 50_257)
result = fit_counts(pairs, 16, tolerance=0.5)
assert pairs.entropy("train") < result.objective < 10, result
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 3 * 2**30
