"""BabyGPT v1 trained on its corpus's pair counts: the exact loss to a tolerance, whatever the length of the corpus.

A fit is made of legs, one descent each: from the weighted SVD of the log counts, from random factors, from near the
best so far. A leg makes a few alternating sweeps, then Levenberg-Marquardt steps to the tolerance where V x V is small;
where it is not, sweeps only, in chunks. Everything a fit is is a pytree of arrays, `CountsFit`: saved and loaded, it
goes on as if it had never stopped.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from babyjax.errors import ConfigError, DivergenceError
from babyjax.models.babygpt import BabyGPT
from babyjax.training.factors import (
    UNKNOWN,
    Descent,
    Factors,
    perturbed,
    random_start,
    start_descent,
    svd_start,
)
from babyjax.training.newton import MAX_DAMPING, double_precision, newton_step
from babyjax.training.statistics import PairCounts
from babyjax.training.sweeps import Targets, smoothed_targets, sweep

# Second order on V x V in float64 up to here: cells of the matrix, and of the D x D blocks of one factor.
DENSE_CELLS, DENSE_BLOCKS = 512**2, 1_000_000
SWEEPS_BEFORE_NEWTON = 6
TOLERANCE, DENSE_SWEEP_TOLERANCE, SWEEP_TOLERANCE = 1e-6, 1e-5, 1e-2
MAX_STEPS = 1000
# Steps damped by no more than this promise what free ones would.
FREE_DAMPING = 1e-3
# Values tried, strong to weak, where validation is to choose.
SMOOTHINGS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 0.0)
PENALTIES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)


class Leg(NamedTuple):
    """One descent: on which objective, from where ("svd", "random", "near best", "best" or "given")."""

    start: str
    seed: int
    smoothing: float
    penalty: float


class CountsFit(NamedTuple):
    """Where a fit is: in which leg, after how many steps of it, and the best end of the legs made before."""

    leg: Int[np.ndarray, ""]
    step: Int[np.ndarray, ""]
    descent: Descent
    best: Factors
    best_score: Float[np.ndarray, ""]
    best_leg: Int[np.ndarray, ""]
    best_gap: Float[np.ndarray, ""]
    made: Int[np.ndarray, ""]


def legs_of(starts: int, seed: int, smoothing: float, penalty: float) -> list[Leg]:
    """`starts` descents on one objective: from the SVD, then from random factors and from near the best in turn."""
    kinds = ["svd", *("near best" if index % 2 else "random" for index in range(starts - 1))]
    return [Leg(kind, seed + index, smoothing, penalty) for index, kind in enumerate(kinds)]


def legs_to_choose(what: str, starts: int, seed: int, smoothing: float, penalty: float) -> list[Leg]:
    """The `starts` of every smoothing or every penalty, strong to weak, and from the second on the best so far."""
    if what == "smoothing":
        values = [(value, penalty) for value in SMOOTHINGS]
    else:
        values = [(smoothing, value) for value in PENALTIES]
    legs = []
    for value in values:
        legs += [Leg("best", seed, *value)] if legs else []
        legs += legs_of(starts, seed, *value)
    return legs


def at_most(nats: float) -> str:
    """A bound with one digit, rounded up, so that it stays one."""
    if nats <= 0:
        return "0"
    power = math.floor(math.log10(nats))
    return f"{math.ceil(nats / 10**power) * 10**power:.0e}"


def _entropies(rows: Float[np.ndarray, "V V"]) -> Float[np.ndarray, " V"]:
    return -(rows * np.log(np.maximum(rows, 1e-300))).sum(1)


class CountsProblem:
    """The exact objective of a BabyGPT of width `n_embd` on the training split of `pairs`, and how to lower it.

    `score` of a model chooses the best leg, the objective where it is None; with a score the legs end early, after two
    values of smoothing or penalty that did not improve it. A leg ends when a step promises less than `tolerance` nats
    (None: 1e-6 where the second order is used, 1e-5 a sweep in float64, 1e-2 a sweep over a large vocabulary). Without
    the second order there is one start only, the SVD.
    """

    def __init__(
        self,
        pairs: PairCounts,
        n_embd: int,
        legs: Sequence[Leg],
        *,
        bias: bool = True,
        tolerance: float | None = None,
        score: Callable[[BabyGPT], float] | None = None,
        given: Factors | None = None,
    ):
        if n_embd < 0 or not legs:
            raise ConfigError(f"there is nothing to fit with a width of {n_embd} and {len(legs)} starts")
        self.pairs, self.bias, self.legs, self.score, self.given = pairs, bias, list(legs), score, given
        self.n_embd = n_embd
        # Row-centred logits have a rank of V - 1 at most; a wider model is padded with zeros.
        self.width = min(n_embd, max(1, pairs.vocab_size - 1))
        cells, blocks = pairs.vocab_size**2, pairs.vocab_size * self.width**2
        self.dense = cells <= DENSE_CELLS
        self.second_order = self.dense and blocks <= DENSE_BLOCKS
        default = TOLERANCE if self.second_order else DENSE_SWEEP_TOLERANCE if self.dense else SWEEP_TOLERANCE
        self.tolerance = default if tolerance is None else tolerance
        if not (self.second_order and self.width):
            self.legs = [leg for leg in self.legs if leg.start not in ("random", "near best")]
        self._smoothing: float | None = None
        self._progress, self.objective = "", UNKNOWN

    def progress(self) -> str:
        """What the last step was and what it brought, in words."""
        return self._progress

    def _targets(self, smoothing: float) -> Targets:
        """The targets with this smoothing; those of the last one asked for are kept."""
        if smoothing != self._smoothing:
            self._sparse = smoothed_targets(self.pairs, smoothing, np.float64 if self.dense else np.float32)
            self._smoothing = smoothing
            if self.dense:
                self._matrix, self._weight = self._sparse.dense()
        return self._sparse

    def matrix(self, smoothing: float) -> tuple[Float[np.ndarray, "V V"], Float[np.ndarray, " V"]]:
        """w_i P_ij and w, where the vocabulary is small."""
        self._targets(smoothing)
        return self._matrix, self._weight

    def start(self) -> CountsFit:
        """Before the first step."""
        first = self._start_leg(0, None)
        zero, unknown = np.array(0, np.int32), np.array(UNKNOWN)
        return CountsFit(zero, zero, first, first.factors, unknown, zero, unknown, zero)

    def _start_leg(self, index: int, best: Factors | None) -> Descent:
        leg = self.legs[index]
        match leg.start:
            case "svd":
                factors = svd_start(self.pairs, self.width, bias=self.bias)
            case "random":
                factors = random_start(self.pairs, self.width, leg.seed, bias=self.bias)
            case "near best":
                assert best is not None
                factors = perturbed(best, leg.seed)
            case "best":
                assert best is not None
                factors = best
            case _:
                assert self.given is not None
                factors = self.given
        return start_descent(factors)

    def _annealed(self, leg: Leg, step: int) -> float:
        """The smoothing at a step of a leg: a start with nothing to lose comes down to it from above."""
        if not self.dense or leg.start not in ("random", "near best"):
            return leg.smoothing
        now = (10.0 if leg.start == "random" else 1.0) * 0.7**step
        return leg.smoothing if now < max(leg.smoothing, 1e-3) else now

    def advance(self, fit: CountsFit) -> CountsFit:
        """One step, and the end of the leg where that was its last. Raises `DivergenceError` for a loss not finite."""
        index, step = int(fit.leg), int(fit.step)
        leg = self.legs[index]
        smoothing = self._annealed(leg, step)
        targets = self._targets(smoothing)
        fresh = leg.start in ("svd", "random", "near best") and not leg.penalty
        if self.second_order and not (fresh and step < SWEEPS_BEFORE_NEWTON):
            descent = newton_step(fit.descent, *self.matrix(smoothing), leg.penalty)
        elif self.dense:
            with double_precision():
                descent = sweep(fit.descent, targets, leg.penalty)
        else:
            descent = sweep(fit.descent, targets, leg.penalty)
        if not np.isfinite(descent.objective):
            raise DivergenceError(f"the exact loss became {descent.objective} in step {step + 1} of start {index + 1}")
        fit = fit._replace(step=np.array(step + 1, np.int32), descent=descent)
        self.objective = float(descent.objective)
        which = f"start {index + 1}, {leg.start}" if len(self.legs) > 1 else leg.start
        if smoothing != leg.smoothing:
            self._progress = f"{which}: coming down to its smoothing"
            return fit
        gap = self.gap(descent, leg)
        if self._certain(leg):
            self._progress = f"{which}: within {at_most(gap)} nats of the global optimum"
        else:
            brought = descent.promise < 1e100  # a first step has nothing to compare with, a refused one brings nothing
            self._progress = f"{which}: {descent.promise:.0e} nats in the last step" if brought else which
        return self._end_leg(fit, gap) if self._finished(fit, gap) else fit

    def _certain(self, leg: Leg) -> bool:
        """Whether the duality gap of a leg is computed and tends to zero: there is a penalty, and no free bias."""
        return self.second_order and leg.penalty > 0 and not self.bias

    def _finished(self, fit: CountsFit, gap: float) -> bool:
        descent, leg = fit.descent, self.legs[int(fit.leg)]
        # Damping makes a step modest: in a flat direction it promises less by as much as it is damped more.
        caution = max(1.0, float(descent.damping) / FREE_DAMPING) if self.second_order else 1.0
        promised_little = descent.promise * caution < self.tolerance and not self._certain(leg)
        stuck = descent.damping >= MAX_DAMPING or fit.step >= MAX_STEPS
        return bool(gap < self.tolerance or promised_little or stuck)

    def gap(self, descent: Descent, leg: Leg) -> float:
        """How far the objective is, at most, above the least there is at any width, in nats.

        The least loss is no lower than the entropy of the targets. With a penalty lam and no bias the dual is sharper:
        f + lam |W|_* >= sum_i w_i H((1 - s) P_i + s Q_i), s = min(1, lam / |G|_2), G the gradient in W (property 15 of
        the project's theory; the conjugate of the nuclear norm is the unit ball of the spectral norm).
        """
        targets = self._targets(leg.smoothing)
        if not self.dense:
            return float(descent.objective) - targets.entropy()
        matrix, weight = self.matrix(leg.smoothing)
        expected = matrix / np.maximum(weight, 1e-300)[:, None]
        if self._certain(leg):
            logits = np.asarray(descent.factors.logits())
            predicted = np.exp(logits - logits.max(1, keepdims=True))
            predicted /= predicted.sum(1, keepdims=True)
            steepest = np.linalg.norm(weight[:, None] * (predicted - expected), 2)
            share = min(1.0, leg.penalty / max(steepest, 1e-300))
            expected = (1 - share) * expected + share * predicted
        return float(descent.objective - weight @ _entropies(expected))

    def _end_leg(self, fit: CountsFit, gap: float) -> CountsFit:
        leg = int(fit.leg)
        descent = fit.descent
        score = self.score(descent.factors.model(self.n_embd)) if self.score else float(descent.objective)
        if score < fit.best_score:
            fit = fit._replace(
                best=descent.factors,
                best_score=np.array(score),
                best_leg=np.array(leg, np.int32),
                best_gap=np.array(gap),
            )
        next_leg = leg + 1
        fit = fit._replace(made=np.array(next_leg, np.int32))
        if (gap < self.tolerance and not self.score) or (self.score and self._values_since_best(fit, leg) >= 2):
            next_leg = len(self.legs)  # nothing is left to find
        start = (
            self._start_leg(next_leg, descent.factors if self.score else fit.best)
            if next_leg < len(self.legs)
            else descent
        )
        return fit._replace(leg=np.array(next_leg, np.int32), step=np.array(0, np.int32), descent=start)

    def _values_since_best(self, fit: CountsFit, leg: int) -> int:
        """Values of smoothing or penalty that have been tried whole, up to the end of `leg`, since the best one."""
        values = [(each.smoothing, each.penalty) for each in self.legs]
        tried = list(dict.fromkeys(values[: leg + 1]))
        whole = leg + 1 == len(values) or values[leg + 1] != values[leg]
        return len(tried) - tried.index(values[int(fit.best_leg)]) - 1 - (not whole)

    def done(self, fit: CountsFit) -> bool:
        """Whether every leg has been made, or need not be."""
        return int(fit.leg) >= len(self.legs)

    def model(self, fit: CountsFit) -> BabyGPT:
        """The best network so far: of the legs ended, or of the one under way in the first."""
        return (fit.best if fit.best_score < UNKNOWN else fit.descent.factors).model(self.n_embd)

    def quality(self, fit: CountsFit) -> str:
        """What is known of the best network, in words."""
        leg, made = self.legs[int(fit.best_leg)], int(fit.made)
        loss = (
            " of the "
            + " and ".join(
                name for name, there in (("smoothed", leg.smoothing), ("penalised", leg.penalty), ("exact", 1)) if there
            ).replace(" and exact", "")
            + " loss"
        )
        if self._certain(leg) or fit.best_gap < self.tolerance:
            known = f"within {at_most(float(fit.best_gap))} nats of the global optimum{loss}"
        else:
            known = f"best of {made} start{'s' * (made != 1)}"
            if not leg.penalty:
                known += (
                    f", at most {at_most(float(fit.best_gap))} nats above any bigram's{loss.removeprefix(' of the')}"
                )
        return f"{known}; chosen by validation among {made} fits" if self.score else known


class CountsResult(NamedTuple):
    """A fitted network: its objective in nats, what is known of it, and the steps and starts it took."""

    model: BabyGPT
    objective: float
    quality: str
    steps: int
    starts: int


def fit_counts(
    pairs: PairCounts,
    n_embd: int = 32,
    *,
    bias: bool = True,
    smoothing: float = 0.0,
    penalty: float = 0.0,
    starts: int = 1,
    seed: int = 0,
    tolerance: float | None = None,
) -> CountsResult:
    """The BabyGPT of width `n_embd` of least exact loss on the training split of `pairs`: no steps, a tolerance.

    `smoothing` is added to every count of a context seen; `penalty` / 2 times the squared factors to the loss.
    """
    problem = CountsProblem(pairs, n_embd, legs_of(starts, seed, smoothing, penalty), bias=bias, tolerance=tolerance)
    fit, steps = problem.start(), 0
    while not problem.done(fit):
        fit, steps = problem.advance(fit), steps + 1
    return CountsResult(problem.model(fit), float(fit.best_score), problem.quality(fit), steps, int(fit.made))
