"""Training on pair counts: the exact loss of BabyGPT v1, to a tolerance."""

import time
from collections.abc import Iterator

import numpy as np

from babyjax.config import BabyGPTConfig, CountsConfig
from babyjax.counts.fit import CountsProblem, Position, plan_choice, plan_restarts
from babyjax.counts.pairs import PairCounts
from babyjax.text import duration
from babyjax.training.devices import require_memory
from babyjax.training.events import Evaluate, Event, State


class ExactTrainer:
    """Fits v1 to the pair counts of the training split. `evaluate` gives the losses; validation chooses if asked to."""

    total_steps = None

    def __init__(
        self,
        pairs: PairCounts,
        model: BabyGPTConfig,
        options: CountsConfig,
        seed: int,
        evaluate: Evaluate,
    ):
        self._pairs, self._options, self._evaluate = pairs, options, evaluate
        smoothing = 1 / pairs.vocab_size if options.smoothing is None else options.smoothing
        objective = options.starts, seed, smoothing, options.penalty
        self._chosen = options.choose != "nothing"
        self._problem = CountsProblem(
            pairs,
            model.n_embd,
            plan_choice(options.choose, *objective) if self._chosen else plan_restarts(*objective),
            bias=model.head_bias,
            tolerance=options.tolerance,
            score=(lambda model: evaluate(model)["val"].per_token) if self._chosen else None,
        )
        self._parameters = 2 * pairs.vocab_size * model.n_embd + pairs.vocab_size * model.head_bias

    def init(self) -> State:
        """Return the state before the first step. Raises: OutOfMemoryError if the model is too large."""
        require_memory(4 * self._parameters, f"a model of {self._parameters:,} parameters")
        position = self._problem.start()
        return State(np.int32(0), self._problem.best(position).model(self._problem.n_embd), position)

    def run(self, state: State, pauses: tuple[int, ...] = ()) -> Iterator[Event]:
        """Fit from `state` to the tolerance. The train loss of a step is that of the best network so far."""
        problem, model, first = self._problem, state.model, int(state.step)
        if problem.done(state.rest):
            return
        alone = not problem.second_order and self._options.starts > 1
        note = "too large for Levenberg-Marquardt steps: one start, from the SVD" if alone else ""
        yield Event(first, state, np.empty(0), 0.0, note=note)
        best, losses = problem.best(state.rest), {}
        began = clock = time.perf_counter()
        for number, step in enumerate(problem.run(state.rest), first + 1):
            seconds = time.perf_counter() - clock
            if problem.best(step.position) is not best:
                best = problem.best(step.position)
                model, losses = best.model(problem.n_embd), {}
            losses = losses or self._evaluate(model)
            last = problem.done(step.position)
            yield Event(
                number,
                State(np.int32(number), model, step.position),
                np.array([losses["train"].per_token]),
                seconds,
                losses=losses,
                last=last,
                details={**step.restart._asdict(), "objective": step.objective},
                note=step.note,
                milestone=step.ended,
                summary=self._summary(step.position, number - first, time.perf_counter() - began) if last else (),
            )
            clock = time.perf_counter()

    def _summary(self, position: Position, steps: int, seconds: float) -> tuple[str, ...]:
        best = self._problem.restarts[int(position.best_restart)]
        lines = [f"known     {self._problem.quality(position)}"]
        if self._chosen:
            lines.append(f"chosen    {self._options.choose}={getattr(best, self._options.choose):g}, by validation")
        if best.smoothing:
            train, val = (self._pairs.add_k_loss(split, best.smoothing) for split in ("train", "val"))
            bigram = f"the bigram smoothed so: train {train:.4f}, val {val:.4f}"
            lines.append(f"smoothed  by {best.smoothing:.3g} per cell; {bigram}")
        return *lines, f"time      {duration(seconds)} for {steps:,} steps on the counts, compilation included"
