"""The targets of a fit, and what sweeps do where the second order cannot help."""

import subprocess
import sys

import numpy as np
import pytest
from chains import V, random_pairs
from scipy.special import log_softmax

import babyjax.counts.fit as fit_module
import babyjax.counts.sweeps as sweeps_module
from babyjax import PairCounts, fit_counts, split_tokens
from babyjax.counts.factors import Factors
from babyjax.counts.fit import CountsProblem, plan_restarts
from babyjax.counts.sweeps import Targets, chunks_of


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
    np.testing.assert_allclose(targets.columns(slice(2, 5)), expected[seen, 2:5].T, atol=1e-15)
    logs = np.log(np.where(rows > 0, rows, 1))
    assert targets.entropy == pytest.approx(-(expected[seen] * logs).sum(), abs=1e-12)
    assert smoothing or targets.entropy == pytest.approx(pairs.entropy("train"), abs=1e-12)

    factors = Factors(rng.normal(size=(V, 3)), rng.normal(size=(V, 3)), rng.normal(size=V))
    monkeypatch.setattr(sweeps_module, "CHUNK_CELLS", 2 * V)
    loss = -(expected * log_softmax(factors.logits(), axis=1)).sum()
    assert targets.loss(factors) == pytest.approx(loss, abs=1e-12)


def test_large_vocabularies_are_swept_in_chunks_without_loss(monkeypatch):
    pairs = random_pairs(vocab_size=23)
    monkeypatch.setattr(fit_module, "DENSE_BLOCKS", 0)
    whole = fit_counts(pairs, 4, smoothing=0.1, tolerance=1e-3)
    monkeypatch.setattr(sweeps_module, "CHUNK_CELLS", 5 * 23)
    assert len(list(chunks_of(22, 23))) == 5
    parts = fit_counts(pairs, 4, smoothing=0.1, tolerance=1e-3)
    assert parts.objective == pytest.approx(whole.objective, abs=1e-9)
    assert parts.steps == whole.steps
    monkeypatch.setattr(fit_module, "DENSE_CELLS", 0)  # float32, as for a large vocabulary
    single = fit_counts(pairs, 4, smoothing=0.1, tolerance=1e-3)
    assert single.objective == pytest.approx(whole.objective, abs=2e-3)


def test_a_long_fit_of_a_sparse_text_stays_finite_and_never_rises_by_much(rng):
    # Most pairs occur once: unsmoothed, the best logits are infinite, and steps towards them know no length.
    vocab_size = 520
    chances = 1 / np.arange(1, vocab_size + 1)
    tokens = rng.choice(vocab_size, size=8000, p=chances / chances.sum()).astype(np.int32)
    tokens[:vocab_size] = np.arange(vocab_size)
    pairs = PairCounts.from_split(split_tokens(tokens), vocab_size)
    problem = CountsProblem(pairs, 2, plan_restarts(1, 0, 0.0, 0.0), tolerance=1e-9)
    position, objectives = problem.start(), []
    for _ in range(30):
        step = problem.advance(position)
        position = step.position
        objectives.append(step.objective)
    assert all(np.isfinite(np.asarray(part)).all() for part in position.descent.factors)
    assert objectives[-1] > pairs.entropy("train")
    assert max(np.diff(objectives)) < 1e-3
    assert objectives[-1] < objectives[5] - 0.01


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_gpt2s_vocabulary_is_swept_without_a_dense_matrix():
    """Counts of 50,257 tokens are sparse and stay so: a dense float32 V x V alone would be 10 GB."""
    program = """
import numpy as np
from babyjax import PairCounts, Split, fit_counts
tokens = np.random.default_rng(0).zipf(1.5, 20_000).clip(1, 50_257).astype(np.int32) - 1
pairs = PairCounts.from_split(Split(tokens[:18_000], tokens[18_000:]), 50_257)
result = fit_counts(pairs, 16, tolerance=0.5)
assert pairs.entropy("train") < result.objective < 10, result
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 3 * 2**30
