import dataclasses

import jax
import numpy as np
import pytest

from babyjax import (
    BabyGPT,
    Bigram,
    ContextEvaluator,
    ExactEvaluator,
    NGram,
    load_config,
    load_task,
    make_trainer,
    ngram_baseline,
)
from babyjax.errors import ConfigError, DataError
from babyjax.training.exact import ExactTrainer
from babyjax.training.gradient import GradientTrainer
from babyjax.training.once import OnceTrainer

SYNTHETIC = ("data=synthetic", "data.length=2000", "data.states=5")


def task_of(*arguments):
    config = load_config([*SYNTHETIC, *arguments])
    return config, load_task(config)


@pytest.mark.parametrize(
    ("arguments", "model", "evaluator", "trainer"),
    [
        (["model=bigram"], Bigram, ExactEvaluator, OnceTrainer),
        (["model=ngram"], NGram, ContextEvaluator, OnceTrainer),
        (["model=babygpt"], BabyGPT, ExactEvaluator, GradientTrainer),
        (["model=babygpt", "trainer=counts"], BabyGPT, ExactEvaluator, ExactTrainer),
        (["model=babygpt-v3-attention"], BabyGPT, ContextEvaluator, GradientTrainer),
    ],
)
def test_a_config_means_a_task_and_a_trainer(arguments, model, evaluator, trainer):
    config, task = task_of(*arguments)
    assert isinstance(task.model, model)
    assert isinstance(task.evaluate, evaluator)
    assert task.sampled == (arguments == ["model=babygpt-v3-attention"])
    assert isinstance(make_trainer(config, task), trainer)


def test_a_task_says_what_is_learned():
    _, task = task_of("model.n_embd=4")
    assert len(task.corpus.text) == sum(map(len, task.split)) == 2000
    assert task.tokenizer.vocab_size == task.pairs.vocab_size == 5
    assert task.parameters == 5 * 4 + 4 * 5 + 5
    assert task.entropy == pytest.approx(task.pairs.entropy("train"))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(task.model))
    losses = task.evaluate(task.initialize(jax.random.key(0)))
    assert {name: loss.tokens for name, loss in losses.items()} == {"train": 1799, "val": 199}
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.sampled = False


def test_a_tokenizer_of_bytes_has_256_tokens():
    _, task = task_of("data.tokenizer=byte")
    assert task.tokenizer.vocab_size == 256
    assert np.asarray(task.split.train).max() < 128


def test_a_text_that_is_missing_or_has_too_many_tokens_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_task(load_config([f"data.path={tmp_path / 'nowhere.txt'}"]))
    with pytest.raises(ConfigError, match=r"model\.vocab_size=4 has no room for the 5 tokens of the text"):
        task_of("model.vocab_size=4")


def test_the_counted_ngram_stands_beside_every_model():
    _, task = task_of("model.n_embd=4")
    again = ngram_baseline(task.split, 5)
    assert task.ngram.order == again.order
    assert task.ngram.val == pytest.approx(again.nats.mean())
    assert len(again.nats) == 199
