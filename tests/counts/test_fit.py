"""Every method finds what SciPy finds, and stops, resumes and bounds as it says."""

import chex
import jax
import numpy as np
import pytest
from chains import V, names_like, random_pairs
from scipy.optimize import minimize
from scipy.special import softmax

import babyjax.counts.fit as fit_module
from babyjax import CharTokenizer, ExactEvaluator, PairCounts, fit_counts, split_tokens
from babyjax.counts.factors import factors_of
from babyjax.counts.fit import CountsProblem, Restart, bound, plan_choice, plan_restarts
from babyjax.errors import ConfigError, DivergenceError
from babyjax.trees import named_arrays

ONE_BYTE = np.ones(V, int)


def scipy_best(
    pairs: PairCounts, width: int, *, bias: bool, smoothing: float, penalty: float = 0.0, starts: int = 3
) -> float:
    """The least objective L-BFGS-B finds from several starts."""
    table = np.zeros((pairs.vocab_size, pairs.vocab_size))
    table[pairs.current, pairs.following] = pairs.counts["train"]
    seen = table.sum(1) > 0
    weight = table[seen].sum(1) / table.sum()
    smoothed = table[seen] + smoothing
    target = weight[:, None] * smoothed / smoothed.sum(1, keepdims=True)
    size = pairs.vocab_size * width

    def objective(x):
        a, b = x[:size].reshape(-1, width), x[size : 2 * size].reshape(-1, width)
        logits = a[seen] @ b.T + (x[2 * size :] if bias else 0)
        normalizer = np.logaddexp.reduce(logits, axis=1)
        wrong = weight[:, None] * np.exp(logits - normalizer[:, None]) - target
        gradient_a = penalty * a
        gradient_a[seen] += wrong @ b
        gradient = [gradient_a.ravel(), (wrong.T @ a[seen] + penalty * b).ravel(), wrong.sum(0) if bias else []]
        value = weight @ normalizer - (target * logits).sum() + penalty / 2 * (x[: 2 * size] ** 2).sum()
        return value, np.concatenate(gradient)

    random = np.random.default_rng(1)
    length = 2 * size + pairs.vocab_size * bias
    options = {"maxiter": 5000, "maxfun": 5000, "ftol": 1e-12, "gtol": 1e-8}
    return min(
        minimize(objective, random.normal(size=length), jac=True, method="L-BFGS-B", options=options).fun
        for _ in range(starts)
    )


# One objective and width in the quick run: each compiles programs of its own.
@pytest.mark.parametrize(
    ("bias", "smoothing", "penalty", "width"),
    [
        pytest.param(*objective, width, marks=() if width == quick else pytest.mark.slow)
        for objective, quick in (((True, 0.5, 0.0), None), ((False, 0.1, 0.0), None), ((False, 0.0, 1e-2), 1))
        for width in (1, 3, 5)
    ],
)
def test_newton_finds_what_lbfgs_finds(width, bias, smoothing, penalty):
    pairs = random_pairs()
    expected = scipy_best(pairs, width, bias=bias, smoothing=smoothing, penalty=penalty)
    result = fit_counts(pairs, width, bias=bias, smoothing=smoothing, penalty=penalty, starts=8, tolerance=1e-9)
    assert result.objective == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("language", [3, 8])
def test_restarts_reach_the_basin_that_few_random_starts_of_lbfgs_find(language):
    pairs = names_like(language)
    expected = scipy_best(pairs, 2, bias=True, smoothing=1 / 27, starts=30)
    assert fit_counts(pairs, 2, smoothing=1 / 27, starts=1).objective > expected + 1e-3
    assert fit_counts(pairs, 2, smoothing=1 / 27, starts=32).objective < expected + 1e-5


@pytest.mark.parametrize(
    ("bias", "smoothing", "penalty"),
    [
        pytest.param(True, 0.5, 0.0, marks=pytest.mark.slow),
        (False, 0.1, 0.0),
        pytest.param(True, 0.1, 1e-2, marks=pytest.mark.slow),
    ],
)
def test_the_first_order_alone_finds_what_lbfgs_finds(monkeypatch, bias, smoothing, penalty):
    monkeypatch.setattr(fit_module, "DENSE_BLOCKS", 0)  # float64, but no second order
    pairs = random_pairs()
    expected = scipy_best(pairs, V - 1, bias=bias, smoothing=smoothing, penalty=penalty)
    result = fit_counts(pairs, V - 1, bias=bias, smoothing=smoothing, penalty=penalty, tolerance=1e-9)
    assert result.objective == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("width", [0, 3, V - 2])
def test_the_cost_and_the_parameters_do_not_depend_on_the_length_of_the_corpus(width):
    once = random_pairs()
    tenfold = PairCounts(once.current, once.following, {name: 10 * matrix for name, matrix in once.segments.items()}, V)
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
    result = fit_counts(pairs, 3, tolerance=1e-4)
    exact = ExactEvaluator(pairs, ONE_BYTE)(result.model)["train"].per_token
    assert exact == pytest.approx(result.objective, abs=1e-6)
    predicted = softmax(factors_of(result.model).logits()[-1])
    assert predicted[-1] < 1e-3 < predicted[:-1].min()


@pytest.mark.parametrize("cells", [0, 512**2])  # in float32 and in float64
def test_the_objective_without_the_second_order_is_that_of_the_model(monkeypatch, cells):
    monkeypatch.setattr(fit_module, "UPDATES", 500)
    monkeypatch.setattr(fit_module, "DENSE_CELLS", cells)
    monkeypatch.setattr(fit_module, "DENSE_BLOCKS", 0)
    pairs = random_pairs()
    result = fit_counts(pairs, 3, tolerance=1e-2)
    exact = ExactEvaluator(pairs, ONE_BYTE)(result.model)["train"].per_token
    assert exact == pytest.approx(result.objective, abs=1e-6)


def test_a_width_beyond_the_rank_is_padded_with_zeros():
    result = fit_counts(random_pairs(), 3 * V, smoothing=0.1)
    assert result.quality.startswith("within")
    embedding = result.model.token_embedding.embedding[...]
    chex.assert_shape(embedding, (V, 3 * V))
    assert not embedding[:, V - 1 :].any()


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_dual_bounds_how_far_the_best_is(penalty):
    pairs = random_pairs()
    problem = CountsProblem(pairs, V, plan_restarts(1, 0, 0.0, penalty), bias=False)
    gaps, objectives, end = [], [], problem.start()
    for step in problem.run(end):
        end = step.position
        if not step.ended:
            gaps.append(problem.gap(end.descent, step.restart))
            objectives.append(step.objective)
    assert float(end.best_gap) <= 1e-6
    assert problem.quality(end).endswith("nats of the global optimum of the penalized loss at any width")
    # Every gap on the way is a bound too: none is less than what was still to come.
    assert (np.array(gaps) >= np.array(objectives) - float(end.best_score) - 1e-12).all()


def test_a_large_vocabulary_has_one_restart_for_each_value_to_choose_from(monkeypatch):
    monkeypatch.setattr(fit_module, "DENSE_CELLS", 0)
    problem = CountsProblem(random_pairs(), 3, plan_choice("penalty", 4, 0, 0.1, 0.0), score=lambda model: 0.0)
    assert [restart.start for restart in problem.restarts] == ["svd"] + ["previous"] * 8
    assert len({restart.penalty for restart in problem.restarts}) == 9


def test_a_hard_width_is_the_best_of_its_restarts_with_a_bound_that_holds():
    pairs = random_pairs()
    result, single = fit_counts(pairs, 3, starts=3), fit_counts(pairs, 3)
    assert result.objective <= single.objective
    known, nats, rest = result.quality.partition(f"{bound(result.objective - pairs.entropy('train'))} nats")
    assert (known, rest) == ("best of 3 restarts, within ", " of the least exact loss at any width")
    assert float(nats.split()[0]) >= result.objective - pairs.entropy("train")


@pytest.mark.parametrize(
    ("nats", "text"), [(0.02931, "0.03"), (0.0291, "0.03"), (1.201e-7, "1.3e-07"), (0.5501, "0.56"), (-1e-17, "0")]
)
def test_bounds_are_rounded_up_to_two_digits(nats, text):
    assert bound(nats) == text
    assert float(bound(nats)) >= nats


def test_a_saved_fit_goes_on_as_if_it_had_never_stopped():
    problem = CountsProblem(random_pairs(), 3, plan_restarts(4, 0, 0.1, 0.0))
    steps = list(problem.run(problem.start()))
    assert len(steps) > 45
    saved = [np.array(leaf) for leaf in named_arrays(steps[39].position).values()]
    again = CountsProblem(random_pairs(), 3, plan_restarts(4, 0, 0.1, 0.0))
    *_, last = again.run(jax.tree.unflatten(jax.tree.structure(again.start()), saved))
    chex.assert_trees_all_equal(last, steps[-1])
    assert again.done(last.position)
    assert not list(again.run(last.position))


def test_validation_chooses_the_smoothing_and_stops_after_two_values_without_improvement():
    pairs = random_pairs(seed=1, length=200)
    evaluator = ExactEvaluator(pairs, ONE_BYTE)
    seen = []

    def score(model):
        seen.append(evaluator(model)["val"].per_token)
        return seen[-1]

    problem = CountsProblem(pairs, V - 1, plan_choice("smoothing", 1, 0, 0.0, 0.0), score=score)
    *_, last = problem.run(problem.start())
    best = int(np.argmin(seen))
    assert int(last.position.best_restart) == best
    value_of_best = problem.restarts[best].smoothing
    since = {restart.smoothing for restart in problem.restarts[best : len(seen)]} - {value_of_best}
    assert len(since) == 2  # two more values, each from where the last ended and from the SVD, and no third
    assert problem.restarts[len(seen)].smoothing not in since
    model = problem.best(last.position).model(V - 1)
    assert evaluator(model)["val"].per_token == pytest.approx(seen[best], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": -1}, "n_embd=-1"),
        ({"starts": 0}, "0 restarts"),
        ({"penalty": -1.0}, "penalty=-1.0 must be finite and >= 0"),
        ({"smoothing": -1.0}, "smoothing=-1.0 "),
        ({"smoothing": float("nan")}, "smoothing=nan "),
        ({"penalty": float("inf")}, "penalty=inf "),
    ],
)
def test_what_cannot_be_fitted_is_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        fit_counts(random_pairs(), **options)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("svg", "unknown start 'svg'; did you mean svd?"),
        ("given", "nothing to start from"),
        ("near best", "nothing to start from"),
    ],
)
def test_a_start_that_does_not_exist_is_an_error(start, message):
    with pytest.raises(ConfigError, match=message):
        CountsProblem(random_pairs(), 3, [Restart(start, 0, 0.0, 0.0)]).start()


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch):
    monkeypatch.setattr(fit_module, "lbfgs_step", lambda descent, *_: descent._replace(objective=np.array(np.nan)))
    with pytest.raises(DivergenceError, match="the exact loss became nan in step 1 of restart 1"):
        fit_counts(random_pairs(), 3)
