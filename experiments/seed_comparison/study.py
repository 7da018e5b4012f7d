"""The models that several measurements need, each trained once."""

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from babyjax import (
    BabyGPT,
    Bigram,
    Event,
    ExactEvaluator,
    LanguageModel,
    PairCounts,
    Split,
    Task,
    batch_at,
    evaluated,
    load_task,
    make_model,
    make_trainer,
)
from babyjax.config import BabyGPTConfig, Config, CountsConfig
from babyjax.errors import DataError, DivergenceError
from babyjax.training.events import State

POINTS = 25  # of a curve of losses, about
WITH_TORCH = importlib.util.find_spec("torch") is not None


@dataclass(frozen=True)
class Effort:
    """How much is measured: all of it, or little in the tests."""

    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    size: float = 1.0  # of what is timed at several sizes
    rounds: int = 9
    widths: tuple[int, ...] = (4, 16, 32)
    merged_vocab: int = 96
    draws: int = 100_000
    rung: str = "babygpt-v9-layernorm"
    orders: tuple[int, ...] = (2, 3, 4, 5)
    tolerance: float | None = None  # of the fits among which validation chooses
    sample: int = 240
    hardware: int = 4096  # tokens and vocabulary at which the device is busy: a table of 64 MiB


class Trained(NamedTuple):
    """A model, and its exact losses during training: seconds of training, steps, nats per token."""

    model: Any
    curve: dict[str, list[float]]


class Study:
    """A task, and BabyGPT v1 and the count bigram trained on it. Raises: DataError if there is nothing to learn."""

    def __init__(self, config: Config, effort: Effort):
        assert isinstance(config.model, BabyGPTConfig)
        self.config, self.effort, self.model_config = config, effort, config.model
        self.task = load_task(config)
        if self.task.entropy == 0:
            name = self.task.corpus.name
            raise DataError(f"{name} leaves nothing to compare: every token is always followed by the same one")
        self.tokens, self.vocab_size = self.task.split.train, self.task.tokenizer.vocab_size
        self.bigram = Bigram.from_tokens(self.tokens, self.vocab_size)
        self.unsmoothed = Bigram(self.bigram.counts[...], smoothing=0.0)
        self.count_matrix = np.asarray(self.bigram.counts[...])

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the first training step."""
        train, block_size = self.config.train, self.config.model.window
        inputs, targets = batch_at(jnp.asarray(self.tokens), train.seed, 0, train.batch_size, block_size)
        return np.asarray(inputs), np.asarray(targets)

    def losses(self, model: LanguageModel) -> dict[str, float]:
        """Return the exact loss of each split in nats per token."""
        return {name: loss.per_token for name, loss in self.task.evaluate(model).items()}

    @cached_property
    def merged(self) -> Task:
        """The task with all but its most frequent tokens merged into one: a V x V network then stays small."""
        limit = self.effort.merged_vocab
        if self.vocab_size <= limit:
            return self.task
        frequent = np.argsort(-np.bincount(np.concatenate(self.task.split)), kind="stable")
        merge = np.full(self.vocab_size, limit - 1, np.int32)
        merge[frequent[: limit - 1]] = np.arange(limit - 1)
        split = Split(*(merge[tokens] for tokens in self.task.split))
        pairs = PairCounts.from_split(split, limit)
        return replace(self.task, split=split, pairs=pairs, evaluate=ExactEvaluator(pairs, np.ones(limit, np.int64)))

    @cached_property
    def initial(self) -> BabyGPT:
        """BabyGPT before the first step."""
        model = make_trainer(self.config, self.task).init().model
        assert isinstance(model, BabyGPT)
        return model

    @cached_property
    def adamw(self) -> Trained:
        """BabyGPT trained by the published recipe."""
        trainer, steps = make_trainer(self.config, self.task), self.config.train.steps
        return self._follow(trainer.run(trainer.init(), (-(-steps // POINTS),)))

    @cached_property
    def counts(self) -> Trained:
        """BabyGPT fitted to the pair counts. Its seconds include the counting."""
        config = self.config.replace(trainer=CountsConfig(starts=1, smoothing=0.0))

        def fit() -> Trained:
            clock = time.perf_counter()
            PairCounts.from_split(self.task.split, self.vocab_size)
            trainer = make_trainer(config, self.task)
            state = trainer.init()
            return self._follow(trainer.run(state), time.perf_counter() - clock)

        fit()  # compiles
        return fit()

    @cached_property
    def pytorch(self) -> Trained:
        """BabyGPT trained by the same recipe in PyTorch's eager mode."""
        from experiments.peers.torch_v1 import TorchV1

        TorchV1(self.tokens, self.vocab_size, self.config).train(3)  # warms up
        loop, last = TorchV1(self.tokens, self.vocab_size, self.config), self.config.train.steps

        def events() -> Iterator[Event]:
            for before, step in pairwise(np.linspace(0, last, min(POINTS, last) + 1).round().astype(int).tolist()):
                clock = time.perf_counter()
                loop.train(step - before)
                seconds = time.perf_counter() - clock
                yield Event(step, State(step, loop.model(), ()), np.zeros(step - before), seconds, last=step == last)

        return self._follow(events())

    def _follow(self, events: Iterator[Event], seconds: float = 0.0) -> Trained:
        """Train to the end. Returns the model and its losses on the way. Raises: DivergenceError."""
        curve, model = {"seconds": [], "steps": [], "train": [], "val": []}, None
        for event in evaluated(events, self.task.evaluate, 1):
            model, seconds = event.state.model, seconds + event.seconds
            if event.losses:
                losses = {name: loss.per_token for name, loss in event.losses.items()}
                if not np.isfinite(list(losses.values())).all():
                    raise DivergenceError("the loss became infinite; try a lower optimizer.learning_rate")
                for name, value in {"seconds": seconds, "steps": event.step, **losses}.items():
                    curve[name].append(value)
        return Trained(model, curve)

    def wide(self) -> LanguageModel:
        """Train BabyGPT by the published recipe with `n_embd` = V, on the merged task."""
        size = self.merged.pairs.vocab_size
        task = replace(self.merged, initialize=partial(make_model, self.model_config.replace(n_embd=size), size))
        trainer = make_trainer(self.config, task)
        *_, last = trainer.run(trainer.init())
        return last.state.model
