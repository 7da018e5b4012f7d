"""What is learned and how it is judged, and the trainer that learns it, from a config."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array, Key

from babyjax.config import BabyGPTConfig, BigramConfig, Config, CountsConfig, DataConfig
from babyjax.counts.pairs import PairCounts
from babyjax.data.batches import Split, split_tokens
from babyjax.data.corpus import Corpus, load_corpus, read_corpus
from babyjax.data.tokenizer import TOKENIZERS, Tokenizer
from babyjax.evaluation.losses import ContextEvaluator, ExactEvaluator, Nats
from babyjax.models import make_model
from babyjax.models.base import LanguageModel
from babyjax.training.counting import CountingTrainer
from babyjax.training.events import Trainer
from babyjax.training.exact import ExactTrainer
from babyjax.training.gradient import GradientTrainer


@dataclass(frozen=True)
class Task:
    """What is learned and how it is judged."""

    corpus: Corpus
    tokenizer: Tokenizer
    split: Split
    pairs: PairCounts
    model: LanguageModel  # shapes only
    initialize: Callable[[Key[Array, ""]], LanguageModel]
    evaluate: Callable[[LanguageModel], dict[str, Nats]]

    @property
    def parameters(self) -> int:
        """Number of parameters of the model, or of counts."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.model))

    @property
    def exact(self) -> bool:
        """Whether evaluation is exact: over every token, from the pair counts."""
        return self.model.context_length == 1

    @property
    def entropy(self) -> float:
        """The entropy of the training pairs in nats per token, a lower bound for models of one previous token."""
        return self.pairs.entropy("train")


def load_corpus_of(config: DataConfig, name: str) -> Corpus:
    """Load the corpus that the `data` options mean. Raises: DataError if it cannot be read."""
    if config.path:
        return read_corpus(config.path)
    source = config.model_dump(exclude={"path", "tokenizer"})
    return load_corpus(name, **source)


def load_task(config: Config) -> Task:
    """Load the corpus of a config, tokenize, split and count it. Raises: DataError, or ConfigError for sizes."""
    corpus = load_corpus_of(config.data, config.choices.data)
    tokenizer = TOKENIZERS[config.data.tokenizer].fit(corpus.text)
    split = split_tokens(tokenizer.encode(corpus.text), config.model.block_size)
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    initialize = partial(make_model, config.model, tokenizer.vocab_size)
    model = jax.eval_shape(initialize, jax.random.key(0))
    evaluate = (
        ExactEvaluator(pairs, tokenizer.byte_lengths)
        if model.context_length == 1
        else ContextEvaluator(split, tokenizer.byte_lengths, config.model.block_size, tokens=config.train.eval_tokens)
    )
    return Task(corpus, tokenizer, split, pairs, model, initialize, evaluate)


def make_trainer(config: Config, task: Task) -> Trainer:
    """Return the trainer that a config means."""
    model, train = config.model, config.train
    if isinstance(model, BigramConfig):
        return CountingTrainer(task.split.train, task.tokenizer.vocab_size, model, train)
    if isinstance(config.trainer, CountsConfig):
        assert isinstance(model, BabyGPTConfig)
        return ExactTrainer(task.pairs, model, config.trainer, train.seed, task.evaluate)
    return GradientTrainer(task.initialize, task.split.train, model.block_size, train, config.optimizer)
