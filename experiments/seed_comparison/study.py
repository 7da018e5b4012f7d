"""A corpus, the options of BabyGPT v1 on it, and the ways to train on it, each followed by its exact losses."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from babyjax import (
    BabyGPT,
    Bigram,
    Corpus,
    ExactEvaluator,
    PairCounts,
    Split,
    batch_at,
    count_matrix,
    split_tokens,
)
from babyjax.data.tokenizer import TOKENIZERS
from babyjax.errors import DivergenceError
from babyjax.models import make_model
from babyjax.schema import BabyGPTConfig, Config
from babyjax.training.counts import CountsProblem, legs_of
from babyjax.training.step import start_key
from experiments.marks import Mark, marked, train
from experiments.seed_comparison.scaling import FACTORS


@dataclass(frozen=True)
class Effort:
    """How much is measured: all of it, or, in the tests, little."""

    factors: tuple[float, ...] = FACTORS
    rounds: int = 9
    widths: tuple[int, ...] = (4, 16, 32)
    full_width_vocab: int = 96
    draws: int = 100_000
    upper_rung: str = "babygpt-v9-layernorm"
    orders: tuple[int, ...] = (2, 3, 4, 5)
    sample: int = 240


class Trained(NamedTuple):
    """A model, and its exact losses as training went on: seconds of training, then nats per token."""

    model: BabyGPT
    curve: dict[str, list[float]]


class Text:
    """A corpus as token ids: its splits, its pair counts, its exact evaluator."""

    def __init__(self, ids: np.ndarray, vocab_size: int, byte_lengths: np.ndarray, block_size: int):
        self.vocab_size = vocab_size
        self.split: Split = split_tokens(ids, block_size)
        self.pairs = PairCounts.from_split(self.split, vocab_size)
        self.evaluate = ExactEvaluator(self.pairs, byte_lengths)
        self.entropy = self.pairs.entropy("train")

    @cached_property
    def tokens(self) -> jax.Array:
        return jnp.asarray(self.split.train)

    @cached_property
    def counts(self) -> np.ndarray:
        return np.asarray(count_matrix(self.split.train, self.vocab_size))

    def losses(self, model: Any) -> dict[str, float]:
        return {name: loss.per_token for name, loss in self.evaluate(model).items()}


class Study:
    """A corpus, the options of BabyGPT v1 on it, and what several measurements need."""

    def __init__(self, corpus: Corpus, config: Config, effort: Effort):
        assert isinstance(config.model, BabyGPTConfig)
        self.config, self.effort, self.model_config = config, effort, config.model
        self.tokenizer = TOKENIZERS[config.data.tokenizer].fit(corpus.text)
        self.ids = self.tokenizer.encode(corpus.text)
        self.text = Text(self.ids, self.tokenizer.vocab_size, self.tokenizer.byte_lengths, config.model.block_size)
        self.bigram = Bigram.from_tokens(self.text.split.train, self.text.vocab_size)
        self.unsmoothed = Bigram(self.bigram.counts[...], 0.0)
        self.seed = config.train.seed

    def batch(self, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a training step."""
        config = self.config
        batch = batch_at(self.text.tokens, self.seed, step, config.train.batch_size, config.model.block_size)
        return np.asarray(batch[0]), np.asarray(batch[1])

    def folded(self) -> Text:
        """The same text with all but its most frequent tokens made one, where a V x V network would be too large."""
        limit = self.effort.full_width_vocab
        if self.text.vocab_size <= limit:
            return self.text
        frequent = np.argsort(-np.bincount(self.ids, minlength=self.text.vocab_size), kind="stable")
        fold = np.full(self.text.vocab_size, limit - 1, np.int32)
        fold[frequent[: limit - 1]] = np.arange(limit - 1)
        return Text(fold[self.ids], limit, np.ones(limit, np.int64), self.config.model.block_size)

    @cached_property
    def start(self) -> BabyGPT:
        """The network before the first step."""
        return jax.jit(lambda: make_model(self.model_config, self.text.vocab_size, start_key(self.seed)))()

    @cached_property
    def marks(self) -> list[int]:
        """Steps after which a loss is looked at: ever further apart."""
        return sorted({round(step) for step in np.geomspace(1, self.config.train.steps, 25)})

    @cached_property
    def adamw(self) -> Trained:
        """By the published script's recipe, in our compiled loop."""
        return follow(train(self.config, self.text.tokens, self.text.vocab_size, self.marks, self.start), self.text)

    @cached_property
    def pytorch(self) -> Trained:
        """By the same recipe in PyTorch, as the seed has it."""
        from experiments.torch_v1 import TorchV1

        loop = TorchV1(self.text.split.train, self.text.vocab_size, self.config)
        TorchV1(self.text.split.train, self.text.vocab_size, self.config).train(3)  # to warm up

        def run(steps: int) -> BabyGPT:
            loop.train(steps)
            return loop.model()

        return follow(marked(run, self.marks), self.text)

    @cached_property
    def counts(self) -> Trained:
        """On the pair counts, from the SVD of their logarithms; counting is part of its seconds."""
        deque(self._fit(), maxlen=0)  # to compile
        return follow(self._fit(), self.text)

    def _fit(self) -> Iterator[Mark]:
        clock = time.perf_counter()
        pairs = PairCounts.from_split(self.text.split, self.text.vocab_size)
        legs = legs_of(1, self.seed, 0.0, 0.0)
        problem = CountsProblem(pairs, self.model_config.n_embd, legs, bias=self.model_config.bias)
        fit, step, seconds = problem.start(), 0, 0.0
        while True:
            np.asarray(fit.descent.factors.head)
            seconds += time.perf_counter() - clock
            yield Mark(step, seconds, problem.model(fit))
            if problem.done(fit):
                return
            clock = time.perf_counter()
            fit, step = problem.advance(fit), step + 1


def follow(marks: Iterable[Mark], text: Text) -> Trained:
    """The last network of a training, and its exact losses on the way."""
    model, curve = None, {"seconds": [], "steps": [], "train": [], "val": []}
    for step, seconds, model in marks:
        losses = text.losses(model)
        if not np.isfinite(list(losses.values())).all():
            raise DivergenceError(f"the loss became infinite by step {step:,}; try a smaller optimizer.learning_rate")
        for name, value in {"seconds": seconds, "steps": step, **losses}.items():
            curve[name].append(value)
    assert isinstance(model, BabyGPT)
    return Trained(model, curve)
