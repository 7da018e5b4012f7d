"""BabyGPT v1 fitted to the pair counts of its corpus: the exact loss to a tolerance, whatever the length of the corpus.

A fit is a list of restarts, one descent each: from the weighted SVD of the log counts, from random factors, from near
the best so far. If V x V and V * n_embd^2 are small, a restart begins with L-BFGS and ends with Levenberg-Marquardt
steps, to the tolerance. If only V x V is small, L-BFGS does the whole descent. With a large vocabulary there is one
descent, by Adam and then by L-BFGS. The position of a fit is a pytree of NumPy arrays: saved and loaded, the fit goes
on as if it had never stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_CEILING, Context
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr, softmax

from babyjax.counts.descent import ITERATIONS, UPDATES, UPDATES_PER_STEP, Descent, Draws, adam_step, lbfgs_step
from babyjax.counts.factors import UNKNOWN, Factors, perturbed, random_factors, svd_factors
from babyjax.counts.newton import MAX_DAMPING, newton_step
from babyjax.counts.objective import Targets
from babyjax.counts.pairs import PairCounts
from babyjax.errors import ConfigError, DivergenceError
from babyjax.models.babygpt import BabyGPT
from babyjax.schema import unknown

# Second order on V x V in float64 up to here: cells of the matrix, and of the D x D blocks of one factor.
DENSE_CELLS, DENSE_BLOCKS = 512**2, 1_000_000
STEPS_BEFORE_NEWTON = 1
# By the precision of the softmax: float64, float32.
DENSE_TOLERANCE, LARGE_TOLERANCE = 1e-6, 1e-3
MAX_STEPS = 1000
# A step damped by no more than this predicts the decrease of a free one.
FREE_DAMPING = 1e-3
# Values to try, strong to weak, if validation chooses; it stops after two values that bring no improvement.
SMOOTHINGS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 0.0)
PENALTIES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
PATIENCE = 2
STARTS = ("svd", "random", "near best", "previous", "given")


class Restart(NamedTuple):
    """One descent: where it starts, one of `STARTS`, and the objective it lowers."""

    start: str
    seed: int
    smoothing: float
    penalty: float


class Position(NamedTuple):
    """Position of a fit: complete restarts, steps of the current one, and the best result so far. All NumPy arrays."""

    restart: Int[np.ndarray, ""]
    step: Int[np.ndarray, ""]
    descent: Descent
    best: Factors
    best_score: Float[np.ndarray, ""]
    best_restart: Int[np.ndarray, ""]
    best_gap: Float[np.ndarray, ""]


class FitStep(NamedTuple):
    """A step of a fit: the position after it, the restart it is part of, a line on the progress, whether that ended."""

    position: Position
    restart: Restart
    objective: float
    note: str
    ended: bool


def plan_restarts(count: int, seed: int, smoothing: float, penalty: float) -> list[Restart]:
    """Plan `count` restarts on one objective: from the SVD, then alternately from random factors and near the best."""
    starts = ["svd", *("near best" if index % 2 else "random" for index in range(count - 1))][:count]
    return [Restart(start, seed + index, smoothing, penalty) for index, start in enumerate(starts)]


def plan_choice(option: str, count: int, seed: int, smoothing: float, penalty: float) -> list[Restart]:
    """Plan `count` restarts for each of `SMOOTHINGS` or `PENALTIES`, and before them one from where the last ended."""
    values = [(s, penalty) for s in SMOOTHINGS] if option == "smoothing" else [(smoothing, p) for p in PENALTIES]
    plans = [[Restart("previous", seed, *value), *plan_restarts(count, seed, *value)] for value in values]
    return list(chain.from_iterable(plans))[1:]


def bound(nats: float) -> str:
    """Return an upper bound with two significant digits, rounded up."""
    return f"{float(Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(max(nats, 0.0))):.2g}"


def dual_bound(
    factors: Factors, targets: Float[np.ndarray, "V V"], weight: Float[np.ndarray, " V"], penalty: float
) -> float:
    """Return a lower bound, for any width, of the loss plus the penalty of a model without a bias.

    f + lam |W|_* >= sum_i w_i H((1 - s) P_i + s Q_i), s = min(1, lam / |G|_2), Q the predictions of `factors` and G the
    gradient in W: the conjugate of the nuclear norm is the unit ball of the spectral norm.
    """
    expected, predicted = targets / np.maximum(weight, 1e-300)[:, None], softmax(factors.logits(), axis=1)
    steepest = np.linalg.norm(weight[:, None] * (predicted - expected), 2)
    share = min(1.0, penalty / max(steepest, 1e-300))
    return float(weight @ entr((1 - share) * expected + share * predicted).sum(1))


class CountsProblem:
    """The exact objective of a BabyGPT of width `n_embd` on the training split of `pairs`, and how to lower it.

    A restart ends when a step predicts less than `tolerance` nats (default: by the precision of the softmax). The best
    restart is the one with the least `score` of its model (default: its objective). Without the second order there are
    no restarts from random factors or near the best; with a large vocabulary there is one restart for each objective.

    Raises: ConfigError if there is nothing to fit or a restart is invalid.
    """

    def __init__(
        self,
        pairs: PairCounts,
        n_embd: int,
        restarts: Sequence[Restart],
        *,
        bias: bool = True,
        tolerance: float | None = None,
        score: Callable[[BabyGPT], float] | None = None,
        given: Factors | None = None,
    ):
        for restart in restarts:
            if restart.start not in STARTS:
                raise unknown("start", restart.start, list(STARTS))
            if not (0 <= restart.smoothing < np.inf and 0 <= restart.penalty < np.inf):
                raise ConfigError(
                    f"smoothing={restart.smoothing} and penalty={restart.penalty} must be finite and >= 0"
                )
        self.pairs, self.n_embd, self.bias, self.score, self.given = pairs, n_embd, bias, score, given
        # Row-centered logits have a rank of V - 1 at most; a wider model is padded with zeros.
        self.width = min(n_embd, max(1, pairs.vocab_size - 1))
        self.dense = pairs.vocab_size**2 <= DENSE_CELLS
        self.second_order = self.dense and pairs.vocab_size * self.width**2 <= DENSE_BLOCKS
        default = DENSE_TOLERANCE if self.dense else LARGE_TOLERANCE
        self.tolerance = default if tolerance is None else tolerance
        many = self.second_order and self.width
        self.restarts = [restart for restart in restarts if many or restart.start not in ("random", "near best")]
        if not self.dense:  # one descent for each objective
            first = {restart[2:]: restart for restart in reversed(self.restarts)}
            self.restarts = [restart for restart in self.restarts if first[restart[2:]] is restart]
        if n_embd < 0 or not self.restarts:
            raise ConfigError(f"nothing to fit: n_embd={n_embd} and {len(self.restarts)} restarts")
        self.targets = lru_cache(maxsize=1)(partial(Targets.of, pairs))  # by smoothing
        self._draws = lru_cache(maxsize=1)(lambda smoothing: Draws(self.targets(smoothing)))

    def start(self) -> Position:
        """Return the position before the first step."""
        zero, unknown = np.array(0, np.int32), np.array(UNKNOWN)
        factors = self._initial(self.restarts[0], None)
        return Position(zero, zero, self._descent(factors), factors, unknown, zero, unknown)

    def _descent(self, factors: Factors) -> Descent:
        return Descent.start(factors, sampled=not self.dense)

    def _initial(self, restart: Restart, last: Factors | None) -> Factors:
        if restart.start == "svd":
            return svd_factors(self.pairs, self.width, bias=self.bias)
        if restart.start == "random":
            return random_factors(self.pairs, self.width, restart.seed, bias=self.bias)
        factors = self.given if restart.start == "given" else last
        if factors is None:
            raise ConfigError(f"a restart from {restart.start!r} has nothing to start from")
        return perturbed(factors, restart.seed) if restart.start == "near best" else factors

    def done(self, position: Position) -> bool:
        """Whether all restarts are complete, or the rest cannot or is unlikely to improve the best."""
        if position.restart >= len(self.restarts):
            return True
        if self.score is None:
            return bool(position.best_gap < self.tolerance)
        values = list(dict.fromkeys(restart[2:] for restart in self.restarts))
        now, best = (values.index(self.restarts[int(i)][2:]) for i in (position.restart, position.best_restart))
        return now - best > PATIENCE

    def run(self, position: Position) -> Iterator[FitStep]:
        """Yield the steps from `position` to the end. Raises: DivergenceError if the loss is NaN or infinite."""
        while not self.done(position):
            yield (step := self.advance(position))
            position = step.position

    def advance(self, position: Position) -> FitStep:
        """Make one step, and end the restart if it was its last. Raises: DivergenceError as `run` does."""
        index, count = int(position.restart), int(position.step) + 1
        restart = self.restarts[index]
        now = self._annealed(restart, count)
        targets = self.targets(now.smoothing)
        before = 0 if restart.penalty or restart.start in ("previous", "given") else STEPS_BEFORE_NEWTON
        sampled = 0 if self.dense else UPDATES // UPDATES_PER_STEP
        if self.second_order and count > before:
            descent = newton_step(position.descent, *targets.dense, restart.penalty)
        elif count <= sampled:
            first = (count - 1) * UPDATES_PER_STEP
            descent = adam_step(position.descent, targets, self._draws(now.smoothing), restart.penalty, first)
        else:
            descent = lbfgs_step(position.descent, targets, restart.penalty, np.float64 if self.dense else np.float32)
        objective = float(descent.objective)
        if not np.isfinite(objective):
            raise DivergenceError(f"the exact loss became {objective} in step {count} of restart {index + 1}")
        gap = self.gap(descent, now)
        # Damping shortens a step: in a flat direction it predicts less by as much as it is damped more.
        caution = max(1.0, float(descent.damping) / FREE_DAMPING) if self.second_order else 1.0
        converged = descent.predicted_decrease * caution < self.tolerance and not self._certified(restart)
        stuck = descent.damping >= MAX_DAMPING or count >= MAX_STEPS
        ended = bool(now == restart and count > sampled and (gap < self.tolerance or converged or stuck))
        annealing = f", smoothing still {now.smoothing:.2g}" if now != restart else ""
        part = f"update {count * UPDATES_PER_STEP:,} of {UPDATES:,}" if count <= sampled else f"restart {index + 1}"
        note = f"{part}, {restart.start}: within {bound(gap)} nats of the optimum at any width{annealing}"
        position = position._replace(step=np.array(count, np.int32), descent=descent)
        return FitStep(self._end(position) if ended else position, restart, objective, note, ended)

    def _annealed(self, restart: Restart, count: int) -> Restart:
        """Return the objective of a step: a restart near the best comes down to its smoothing from above."""
        if restart.start != "near best":
            return restart
        smoothing = 0.7 ** (count - 1)
        return restart if smoothing < max(restart.smoothing, 1e-3) else restart._replace(smoothing=smoothing)

    def _certified(self, restart: Restart) -> bool:
        """Whether the gap is zero at the global optimum: there is a penalty, and no free bias."""
        return self.second_order and restart.penalty > 0 and not self.bias

    def gap(self, descent: Descent, restart: Restart) -> float:
        """Return how far, at most, the objective is above the least at any width, in nats."""
        targets = self.targets(restart.smoothing)
        if not self._certified(restart):
            return float(descent.objective) - targets.entropy
        return float(descent.objective) - dual_bound(descent.factors, *targets.dense, restart.penalty)

    def _end(self, position: Position) -> Position:
        """Compare the end of a restart with the best so far, and start the next one."""
        index, factors = int(position.restart), position.descent.factors
        restart = self.restarts[index]
        objective, _ = self.targets(restart.smoothing).loss_and_gradient(factors, restart.penalty)
        descent = position.descent._replace(objective=np.array(objective))
        score = self.score(factors.model(self.n_embd)) if self.score else objective
        if score < position.best_score:
            best = factors, np.array(score), position.restart, np.array(self.gap(descent, restart))
            position = Position(*position[:3], *best)
        zero = np.array(0, np.int32)
        position = position._replace(restart=np.array(index + 1, np.int32), step=zero, descent=descent)
        if self.done(position):
            return position
        initial = self._initial(self.restarts[index + 1], factors if self.score else position.best)
        return position._replace(descent=self._descent(initial))

    def best(self, position: Position) -> Factors:
        """Return the best factors so far; in the first restart, the current ones."""
        return position.best if position.best_score < UNKNOWN else position.descent.factors

    def quality(self, position: Position) -> str:
        """Describe what is known of the best network."""
        restart, fits = self.restarts[int(position.best_restart)], int(position.restart)
        parts = [name for name, used in (("smoothed", restart.smoothing), ("penalized", restart.penalty)) if used]
        loss, gap = f"{' and '.join(parts) or 'exact'} loss at any width", float(position.best_gap)
        if self._certified(restart) or gap < self.tolerance:
            known = f"within {bound(gap)} nats of the global optimum of the {loss}"
        else:
            known = f"best of {fits} restart{'s' * (fits != 1)}, within {bound(gap)} nats of the least {loss}"
            if not self.dense and self.score is None:
                brought = bound(float(position.descent.predicted_decrease))
                known += f"; the last {ITERATIONS} iterations of L-BFGS brought {brought}"
        return f"{known}; chosen by validation among {fits} fits" if self.score else known


class CountsResult(NamedTuple):
    """A fitted network, its objective in nats, what is known of it, and how many steps and restarts it took."""

    model: BabyGPT
    objective: float
    quality: str
    steps: int
    restarts: int


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
    """Fit a BabyGPT of width `n_embd` to the exact loss on the training split of `pairs`: no steps, a tolerance.

    `smoothing` is added to every count of a context that is seen; `penalty` / 2 times the squared factors to the loss.
    The result is the best of `starts` restarts. Raises: ConfigError if a value is out of range.
    """
    restarts = plan_restarts(starts, seed, smoothing, penalty)
    problem = CountsProblem(pairs, n_embd, restarts, bias=bias, tolerance=tolerance)
    position, steps = problem.start(), 0
    for step in problem.run(position):
        position, steps = step.position, steps + 1
    model = problem.best(position).model(n_embd)
    return CountsResult(model, float(position.best_score), problem.quality(position), steps, int(position.restart))
