"""Training on counts: every solver finds what SciPy finds, and stops, resumes and certifies as it says."""

import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

import babyjax.training.counts as counts_module
import babyjax.training.sweeps as sweeps_module
from babyjax import CharTokenizer, ExactEvaluator, PairCounts, fit_counts, split_tokens
from babyjax.data.batches import Split
from babyjax.errors import ConfigError
from babyjax.training.checkpoint import Checkpoints
from babyjax.training.counts import CountsProblem, Leg, legs_of, legs_to_choose
from babyjax.training.factors import Factors, balance, factors_of, svd_start
from babyjax.training.newton import _inverse, double_precision
from babyjax.training.step import TrainState
from babyjax.training.sweeps import smoothed_targets

V = 7


def random_pairs(seed: int = 0, length: int = 3000, vocab_size: int = V) -> PairCounts:
    """Counts of a random Markov chain over all but the last token, which is never seen."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.full(vocab_size - 1, 0.4), size=vocab_size - 1)
    tokens = [0]
    for _ in range(length):
        tokens.append(random.choice(vocab_size - 1, p=rows[tokens[-1]]))
    tokens = np.array(tokens, np.int32)
    return PairCounts.from_split(Split(tokens[: length * 9 // 10], tokens[length * 9 // 10 :]), vocab_size)


def dense_counts(pairs: PairCounts) -> np.ndarray:
    table = np.zeros((pairs.vocab_size, pairs.vocab_size))
    table[pairs.current, pairs.following] = pairs.counts["train"]
    return table


def scipy_best(
    pairs: PairCounts, width: int, *, bias: bool, smoothing: float, penalty: float, starts: int = 6
) -> float:
    """The least objective L-BFGS-B finds from several starts."""
    table = dense_counts(pairs)
    seen = table.sum(1) > 0
    weight = table[seen].sum(1) / table.sum()
    smoothed = table[seen] + smoothing
    target = weight[:, None] * smoothed / smoothed.sum(1, keepdims=True)
    size = pairs.vocab_size * width

    def objective(x):
        a, b = x[:size].reshape(-1, width), x[size : 2 * size].reshape(-1, width)
        logits = a[seen] @ b.T + (x[2 * size :] if bias else 0)
        normaliser = np.asarray(logsumexp(logits, axis=1))
        wrong = weight[:, None] * np.exp(logits - normaliser[:, None]) - target
        gradient_a = penalty * a
        gradient_a[seen] += wrong @ b
        gradient = [gradient_a.ravel(), (wrong.T @ a[seen] + penalty * b).ravel(), wrong.sum(0) if bias else []]
        value = weight @ normaliser - (target * logits).sum() + penalty / 2 * (x[: 2 * size] ** 2).sum()
        return value, np.concatenate(gradient)

    random = np.random.default_rng(1)
    length = 2 * size + pairs.vocab_size * bias
    options = {"maxiter": 5000, "maxfun": 5000, "ftol": 1e-12, "gtol": 1e-8}
    return min(
        minimize(objective, random.normal(size=length), jac=True, method="L-BFGS-B", options=options).fun
        for _ in range(starts)
    )


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize(("bias", "smoothing", "penalty"), [(True, 0.5, 0.0), (False, 0.1, 0.0), (False, 0.0, 1e-2)])
def test_newton_finds_what_lbfgs_finds(width, bias, smoothing, penalty):
    pairs = random_pairs()
    expected = scipy_best(pairs, width, bias=bias, smoothing=smoothing, penalty=penalty)
    result = fit_counts(pairs, width, bias=bias, smoothing=smoothing, penalty=penalty, starts=8, tolerance=1e-9)
    assert result.objective == pytest.approx(expected, abs=2e-6)


# Alternating sweeps shrink a direction the penalty wants gone ever more slowly: they get near, no more.
@pytest.mark.parametrize(
    ("bias", "smoothing", "penalty", "near"),
    [(True, 0.5, 0.0, 1e-5), (False, 0.1, 0.0, 1e-5), (True, 0.1, 1e-2, 2e-3)],
)
def test_sweeps_alone_find_what_lbfgs_finds(monkeypatch, bias, smoothing, penalty, near):
    monkeypatch.setattr(counts_module, "DENSE_BLOCKS", 0)  # float64, but no second order
    pairs = random_pairs()
    expected = scipy_best(pairs, V - 1, bias=bias, smoothing=smoothing, penalty=penalty)
    result = fit_counts(pairs, V - 1, bias=bias, smoothing=smoothing, penalty=penalty, tolerance=1e-9)
    assert result.objective == pytest.approx(expected, abs=near)


def test_large_vocabularies_are_swept_in_chunks_and_lose_nothing_by_it(monkeypatch):
    pairs = random_pairs(vocab_size=23)
    monkeypatch.setattr(counts_module, "DENSE_BLOCKS", 0)
    whole = fit_counts(pairs, 4, smoothing=0.1, tolerance=1e-3)
    monkeypatch.setattr(sweeps_module, "CHUNK_CELLS", 5 * 23)
    assert len(smoothed_targets(pairs, 0.1, np.float64).by_row) == 5
    parts = fit_counts(pairs, 4, smoothing=0.1, tolerance=1e-3)
    assert parts.objective == pytest.approx(whole.objective, abs=1e-9)
    assert parts.steps == whole.steps
    monkeypatch.setattr(counts_module, "DENSE_CELLS", 0)  # float32, as for a large vocabulary
    single = fit_counts(pairs, 4, smoothing=0.1, tolerance=1e-3)
    assert single.objective == pytest.approx(whole.objective, abs=2e-3)


@pytest.mark.parametrize("width", [0, 2, V - 2])
def test_the_cost_and_the_parameters_do_not_depend_on_the_length_of_the_corpus(width):
    once = random_pairs()
    tenfold = PairCounts(once.current, once.following, {k: 10 * c for k, c in once.counts.items()}, V)
    short, long = (fit_counts(pairs, width) for pairs in (once, tenfold))
    assert short.steps == long.steps
    chex.assert_trees_all_close(factors_of(short.model), factors_of(long.model), rtol=1e-3, atol=1e-3)
    assert short.objective == pytest.approx(long.objective, abs=1e-9)


def test_a_text_repeated_ten_times_costs_what_it_costs_once():
    text = "the cat sat on the mat and the dog sat on the log " * 20
    fits = []
    for repeated in (text, text * 10):
        tokenizer = CharTokenizer.fit(repeated)
        pairs = PairCounts.from_split(split_tokens(tokenizer.encode(repeated)), tokenizer.vocab_size)
        fits.append(fit_counts(pairs, 8, tolerance=1e-4))
    assert fits[0].steps == fits[1].steps
    assert fits[0].objective == pytest.approx(fits[1].objective, abs=0.01)  # the ends are not repeated


def test_the_model_has_the_objective_and_unseen_contexts_the_unigram():
    pairs = random_pairs()
    result = fit_counts(pairs, 4, tolerance=1e-4)
    exact = ExactEvaluator(pairs, np.ones(V, int))(result.model)["train"].per_token
    assert exact == pytest.approx(result.objective, abs=1e-6)
    factors = factors_of(result.model)
    predicted = np.exp(factors.logits()[-1] - logsumexp(factors.logits()[-1]))
    assert predicted[-1] < 1e-3 < predicted[:-1].min()


def test_a_width_beyond_the_rank_is_padded_with_zeros():
    result = fit_counts(random_pairs(), 3 * V, smoothing=0.1)
    assert result.quality.startswith("within")
    embedding = result.model.token_embedding.embedding[...]
    chex.assert_shape(embedding, (V, 3 * V))
    assert not embedding[:, V - 1 :].any()


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_certificate_bounds_how_far_the_best_is(penalty):
    pairs = random_pairs()
    problem = CountsProblem(pairs, V, legs_of(1, 0, 0.0, penalty), bias=False)
    fit, gaps, objectives = problem.start(), [], []
    while not problem.done(fit):
        fit = problem.advance(fit)
        if not problem.done(fit):
            gaps.append(problem.gap(fit.descent, problem.legs[0]))
            objectives.append(float(fit.descent.objective))
    assert float(fit.best_gap) <= 1e-6
    assert problem.quality(fit).endswith("nats of the global optimum of the penalised loss")
    # Every gap on the way is a bound too: none is less than what was still to come.
    assert (np.array(gaps) >= np.array(objectives) - float(fit.best_score) - 1e-12).all()


def test_a_hard_width_is_only_the_best_of_its_starts():
    result = fit_counts(random_pairs(), 2, starts=3)
    assert result.quality.startswith("best of 3 starts, at most ")
    single = fit_counts(random_pairs(), 2)
    assert result.objective <= single.objective


def test_a_saved_fit_goes_on_as_if_it_had_never_stopped(tmp_path):
    problem = CountsProblem(random_pairs(), 3, legs_of(4, 0, 0.1, 0.0))
    fit, halfway = problem.start(), None
    steps = 0
    while not problem.done(fit):
        fit, steps = problem.advance(fit), steps + 1
        if steps == 40:
            halfway = fit
    assert halfway is not None
    assert not problem.done(halfway)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(TrainState(jax.numpy.int32(40), problem.model(halfway), halfway), 40, 1, {}, {})
    checkpoints.wait()
    again = CountsProblem(random_pairs(), 3, legs_of(4, 0, 0.1, 0.0))
    resumed = checkpoints.load(40).fill(again.start(), "opt_state")
    while not again.done(resumed):
        resumed = again.advance(resumed)
    chex.assert_trees_all_equal(resumed, fit)


def test_validation_chooses_the_smoothing_and_stops_when_it_has_risen_twice():
    pairs = random_pairs(seed=1, length=200)
    evaluator = ExactEvaluator(pairs, np.ones(V, int))
    seen = []

    def score(model):
        seen.append(evaluator(model)["val"].per_token)
        return seen[-1]

    problem = CountsProblem(pairs, V - 1, legs_to_choose("smoothing", 1, 0, 0.0, 0.0), score=score)
    fit = problem.start()
    while not problem.done(fit):
        fit = problem.advance(fit)
    best = int(np.argmin(seen))
    assert int(fit.best_leg) == best
    value_of_best = problem.legs[best].smoothing
    since = {leg.smoothing for leg in problem.legs[best : len(seen)]} - {value_of_best}
    assert len(since) == 2  # two more values, each from the SVD and from the best before, and no third
    assert problem.legs[len(seen)].smoothing not in since
    assert evaluator(problem.model(fit))["val"].per_token == pytest.approx(seen[best], abs=1e-6)


def test_balancing_leaves_the_logits_and_reaches_the_nuclear_norm(rng):
    factors = Factors(rng.normal(size=(V, 3)), rng.normal(size=(V, 3)), rng.normal(size=V))
    balanced = balance(factors)
    np.testing.assert_allclose(balanced.logits(), factors.logits(), atol=1e-12)
    squares = (balanced.embedding**2).sum() + (balanced.head**2).sum()
    assert squares / 2 == pytest.approx(np.linalg.norm(factors.embedding @ factors.head.T, "nuc"))
    assert squares <= (factors.embedding**2).sum() + (factors.head**2).sum()


@pytest.mark.parametrize("bias", [True, False])
def test_the_sparse_start_is_the_dense_one(monkeypatch, bias):
    pairs = random_pairs(vocab_size=40, length=5000)
    dense = svd_start(pairs, 4, bias=bias)
    monkeypatch.setattr("babyjax.training.factors.DENSE_VOCAB", 0)
    sparse = svd_start(pairs, 4, bias=bias)
    np.testing.assert_allclose(sparse.logits(), dense.logits(), atol=1e-6)


def test_the_blocks_are_inverted(rng):
    roots = rng.normal(size=(5, 6, 6))
    matrices = roots @ roots.swapaxes(1, 2) + 1e-3 * np.eye(6)
    with double_precision():
        np.testing.assert_allclose(_inverse(jax.numpy.asarray(matrices)), np.linalg.inv(matrices), rtol=1e-8)


def test_nothing_to_fit_is_an_error():
    with pytest.raises(ConfigError, match="nothing to fit"):
        CountsProblem(random_pairs(), -1, [Leg("svd", 0, 0.0, 0.0)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_gpt2s_vocabulary_is_swept_without_a_dense_matrix():
    """Counts of 50,257 tokens are sparse and stay so: a dense float32 V x V alone would be 10 GB."""
    program = """
import numpy as np
from babyjax import PairCounts, fit_counts
from babyjax.data.batches import Split
tokens = np.random.default_rng(0).zipf(1.5, 20_000).clip(1, 50_257).astype(np.int32) - 1
pairs = PairCounts.from_split(Split(tokens[:18_000], tokens[18_000:]), 50_257)
result = fit_counts(pairs, 16, tolerance=0.5)
assert pairs.entropy("train") < result.objective < 10, result
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 3 * 2**30


def test_a_long_fit_of_a_sparse_text_stays_finite_and_never_rises_by_much(rng):
    # Most pairs occur once: unsmoothed, the best logits are infinite, and steps towards them know no length.
    vocab_size = 520
    chances = 1 / np.arange(1, vocab_size + 1)
    tokens = rng.choice(vocab_size, size=8000, p=chances / chances.sum()).astype(np.int32)
    tokens[:vocab_size] = np.arange(vocab_size)
    pairs = PairCounts.from_split(split_tokens(tokens), vocab_size)
    problem = CountsProblem(pairs, 2, legs_of(1, 0, 0.0, 0.0), tolerance=1e-9)
    fit, objectives = problem.start(), []
    for _ in range(30):
        fit = problem.advance(fit)
        objectives.append(float(fit.descent.objective))
    assert all(np.isfinite(np.asarray(part)).all() for part in fit.descent.factors)
    assert objectives[-1] > pairs.entropy("train")
    assert max(np.diff(objectives)) < 1e-3
    assert objectives[-1] < objectives[5] - 0.01
