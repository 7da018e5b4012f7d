"""What is learned and how it is judged, and the trainer that learns it, from a config."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from babyjax.config import BabyGPTConfig, BigramConfig, Config, CountsConfig, DataConfig, MixtureConfig, NGramConfig
from babyjax.counts.kneser_ney import choose_order, evidence_of, nats_at
from babyjax.counts.pairs import PairCounts
from babyjax.data.batches import Split, bytes_of, in_memory, split_tokens
from babyjax.data.corpus import Corpus, load_corpus
from babyjax.data.prepared import PreparedCorpus
from babyjax.data.preparing import load_file
from babyjax.data.tokenizer import Tokenizer, make_tokenizer
from babyjax.errors import ConfigError, RunError
from babyjax.evaluation.evaluator import Evaluator, make_evaluator, verify_sample
from babyjax.evaluation.mixing import MixtureEvaluator
from babyjax.evaluation.verify import Verification
from babyjax.files import user_path
from babyjax.interop.arpa import read_arpa
from babyjax.models import make_model
from babyjax.models.base import LanguageModel
from babyjax.models.grow import grow
from babyjax.progress import Progress, silent
from babyjax.runs.directory import LoadedRun, load_run
from babyjax.training.events import Trainer
from babyjax.training.exact import ExactTrainer
from babyjax.training.gradient import GradientTrainer
from babyjax.training.once import Made, OnceTrainer, count_bigram, count_ngram, mix

# Tokens that are counted to compare with; those of a long text that are nearest to its validation split.
NGRAM_TOKENS = 1 << 23


class NGramBaseline(NamedTuple):
    """What the counted n-gram of an order loses on each validation token but the first, in nats.

    Of a long text it has `counted` tokens, and `nats` are of the first validation tokens.
    """

    order: int
    nats: Float[np.ndarray, " T"]
    counted: int

    @property
    def val(self) -> float:
        """Its loss on the validation split, in nats per token."""
        return float(self.nats.mean())


def ngram_baseline(split: Split, vocab_size: int) -> NGramBaseline:
    """Count the training split, with the order that is best for the last tenth of it."""
    train, val = in_memory(split.train[-NGRAM_TOKENS:]), in_memory(split.val[: NGRAM_TOKENS // 8])
    order = choose_order(train, vocab_size)
    return NGramBaseline(order, nats_at(evidence_of(train, val, vocab_size, order), vocab_size), len(train))


@dataclass(frozen=True)
class Task:
    """What is learned and how it is judged."""

    corpus: Corpus | PreparedCorpus
    tokenizer: Tokenizer
    split: Split
    pairs: PairCounts
    model: LanguageModel  # shapes only
    initialize: Callable[[Key[Array, ""]], LanguageModel]
    evaluate: Evaluator
    verify: Callable[[LanguageModel], Verification]  # on some of the validation tokens
    sampled: bool  # whether `evaluate` scores some of the tokens, not all
    parts: tuple[LoadedRun, ...] = ()  # of a mixture
    origin: str = ""  # the run that it was grown from, in words

    @property
    def parameters(self) -> int:
        """Number of parameters of the model, or of counts; 0 if only counting tells."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.model))

    @property
    def entropy(self) -> float:
        """The entropy of the training pairs in nats per token, a lower bound for models of one previous token."""
        return self.pairs.entropy("train")

    def training_text(self) -> Corpus | PreparedCorpus:
        """Return the text of the training split as a corpus of its own, up to its last whole character."""
        if isinstance(self.corpus, PreparedCorpus):
            return self.corpus.training()
        size = bytes_of(self.split.train, self.tokenizer.byte_lengths)
        text = self.corpus.text.encode()[:size].decode(errors="ignore")
        return Corpus(f"{self.corpus.name}-train", text, self.corpus.entropy_rate)

    @cached_property
    def ngram(self) -> NGramBaseline:
        """The counted n-gram to compare with."""
        return ngram_baseline(self.split, self.tokenizer.vocab_size)


def load_corpus_of(config: DataConfig, name: str, progress: Progress) -> Corpus | PreparedCorpus:
    """Load the corpus that the `data` options mean. Raises: DataError if it cannot be read."""
    if config.path:
        return load_file(config.path, config.field, config.tokenizer, config.vocab_size, progress)
    source = config.model_dump(exclude={"path", "field", "tokenizer", "vocab_size"})
    return load_corpus(name, **source)


def load_task(
    config: Config,
    corpus: Corpus | PreparedCorpus | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress = silent,
) -> Task:
    """Load the corpus of a config, tokenize, split and count it.

    A given `corpus` or `tokenizer` replaces that of the config. `progress(what, share)` is called while a large text is
    read.

    Raises: DataError, also if a prepared corpus has another tokenizer, or ConfigError for sizes.
    """
    corpus = corpus or load_corpus_of(config.data, config.choices.data, progress)
    if isinstance(corpus, PreparedCorpus):
        tokenizer = tokenizer or corpus.tokenizer
    elif tokenizer is None:
        text = [corpus.text]
        tokenizer = make_tokenizer(config.data.tokenizer, lambda: text, config.data.vocab_size)
    split = split_tokens(corpus.encode(tokenizer), config.model.window)
    pairs = PairCounts.of_corpus(corpus, split, tokenizer.vocab_size)
    parts = _load_parts(config.model, corpus, tokenizer) if isinstance(config.model, MixtureConfig) else ()
    models, tokens = [part.model for part in parts], config.train.eval_tokens
    initialize = partial(make_model, config.model, tokenizer.vocab_size, parts=models)
    model = jax.eval_shape(initialize, jax.random.key(0))
    evaluate = make_evaluator(model, pairs, split, tokenizer.byte_lengths, tokens=tokens)
    verify = partial(verify_sample, split=split, byte_lengths=tokenizer.byte_lengths)
    sampled = model.max_length is not None and tokens is not None
    return Task(corpus, tokenizer, split, pairs, model, initialize, evaluate, verify, sampled, parts)


def _load_parts(config: MixtureConfig, corpus: Corpus | PreparedCorpus, tokenizer: Tokenizer) -> tuple[LoadedRun, ...]:
    """Load the runs of a mixture. Raises: ConfigError or RunError if they cannot be mixed."""
    paths = [path for path in config.parts.split(",") if path]
    if len(paths) < 2:
        raise ConfigError("model.parts=RUN,RUN,... needs at least two run directories")
    parts = tuple(map(load_run, paths))
    for path, part in zip(paths, parts, strict=True):
        if isinstance(part.config.model, MixtureConfig):
            raise RunError(f"{path} is itself a mixture; mix its parts instead")
        if part.tokenizer != tokenizer or part.manifest.corpus.sha256 != corpus.sha256:
            raise RunError(
                f"{path} was trained on {part.manifest.corpus.name} by {part.tokenizer.name}, not on this corpus "
                f"({corpus.name} by {tokenizer.name}); give the same data.path= and data.tokenizer="
            )
    return parts


def grown(config: Config, task: Task) -> Task:
    """Return the task of growing the run `train.grow_from`, if there is one.

    Raises: RunError if that has another vocabulary, ConfigError if the model cannot be grown.
    """
    if not config.train.grow_from:
        return task
    smaller = load_run(config.train.grow_from)
    if smaller.tokenizer != task.tokenizer:
        raise RunError(f"train.grow_from={config.train.grow_from} was trained with another vocabulary")
    if not isinstance(larger := config.model, BabyGPTConfig):
        raise ConfigError(f"train.grow_from= is for networks of the ladder, not for model={config.choices.model}")
    return replace(
        task,
        initialize=lambda key: grow(smaller.model, larger, key),
        origin=f"{smaller.config.choices.model} in {config.train.grow_from}, step {smaller.step:,}",
    )


def make_trainer(config: Config, task: Task) -> Trainer:
    """Return the trainer that a config means."""
    model, train, vocab_size = config.model, config.train, task.tokenizer.vocab_size
    match model:
        case BigramConfig():
            make = partial(count_bigram, task.split.train, vocab_size, model, train)
        case NGramConfig(arpa=None):
            make = partial(count_ngram, task.split.train, vocab_size, model)
        case NGramConfig(arpa=str(path)):
            make = partial(_take_ngrams, user_path(path, ConfigError), task.tokenizer.words)
        case MixtureConfig():
            assert isinstance(task.evaluate, MixtureEvaluator)
            names = [part.folder.name for part in task.parts]
            make = partial(mix, [part.model for part in task.parts], names, model, task.evaluate)
        case BabyGPTConfig() if isinstance(config.trainer, CountsConfig):
            return ExactTrainer(task.pairs, model, config.trainer, train.seed, task.evaluate)
        case BabyGPTConfig():
            return GradientTrainer(task.initialize, task.split.train, model.block_size, train, config.optimizer)
        case _:
            raise TypeError(f"no trainer for {type(model).__name__}")
    return OnceTrainer(task.model, make)


def _take_ngrams(path: Path, words: list[str]) -> Made:
    model = read_arpa(path, words)
    return Made(model, f"read {model.size:,} n-grams of up to {model.order} tokens")
