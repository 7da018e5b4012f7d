import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import Split, batch_at, count_matrix, estimate_ngram
from babyjax.config import BigramConfig, MixtureConfig, NGramConfig, TrainConfig
from babyjax.counts.kneser_ney import choose_fitted, choose_order, fit_discounts
from babyjax.errors import OutOfMemoryError
from babyjax.evaluation.mixing import MixtureEvaluator, fit_gate
from babyjax.models.bigram import Bigram
from babyjax.models.mixture import FEATURES
from babyjax.training import devices
from babyjax.training.once import OnceTrainer, count_bigram, count_ngram, mix

V = 5
TOKENS = np.random.default_rng(0).choice(V, 300, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.int32)
TRAIN = TrainConfig(steps=6, batch_size=3, seed=2)


def test_one_step_makes_the_model():
    made = count_bigram(TOKENS, V, BigramConfig(smoothing=0.5), TRAIN)
    trainer = OnceTrainer(jax.eval_shape(lambda: Bigram(jnp.zeros((V, V), jnp.int32))), lambda: made)
    first, last = trainer.run(trainer.init())
    assert (first.step, first.state.model.counts.shape) == (0, (V, V))
    assert (last.step, last.last, last.note) == (1, True, "counted 299 pairs")
    assert last.summary[-1].endswith(", counted 299 pairs")
    assert np.isnan(last.train_losses).tolist() == [True]  # nothing was predicted
    np.testing.assert_array_equal(last.state.model.counts[...], count_matrix(TOKENS, V))
    assert last.state.model.smoothing == 0.5
    assert list(trainer.run(last.state)) == []


def test_windows_are_those_of_the_training_batches():
    expected = np.zeros((V, V), np.int32)
    for step in range(TRAIN.steps):
        np.add.at(expected, tuple(map(np.asarray, batch_at(jax.numpy.asarray(TOKENS), 2, step, 3, 8))), 1)
    counts = count_bigram(TOKENS, V, BigramConfig(counting="windows"), TRAIN).model.counts[...]
    np.testing.assert_array_equal(counts, expected)


def test_a_table_too_large_for_the_device_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "memory_of", lambda device: 100)
    with pytest.raises(OutOfMemoryError, match="a table of 5 x 5 counts"):
        count_bigram(TOKENS, V, BigramConfig(), TRAIN)


@pytest.mark.parametrize("discounts", ["published", "fitted"])
@pytest.mark.parametrize("order", [3, "auto"])
def test_ngrams_have_the_order_and_the_discounts_of_the_config(order, discounts):
    model = count_ngram(TOKENS, V, NGramConfig(order=order, discounts=discounts)).model
    if discounts == "published":
        expected = estimate_ngram(TOKENS, V, choose_order(TOKENS, V) if order == "auto" else order)
    elif order == "auto":
        expected = estimate_ngram(TOKENS, V, *choose_fitted(TOKENS, V))
    else:
        expected = estimate_ngram(TOKENS, V, order, fit_discounts(TOKENS, V, order)[0])
    jax.tree.map(np.testing.assert_array_equal, model, expected)


@pytest.mark.parametrize("weights", ["context", pytest.param("global", marks=pytest.mark.slow)])
def test_a_mixture_has_the_best_weights_for_the_validation_split(weights):
    split = Split(TOKENS[:250], TOKENS[250:])
    parts = [estimate_ngram(split.train, V, 3), Bigram.from_tokens(split.train, V)]
    evaluator, size = MixtureEvaluator(split, np.ones(V, int)), FEATURES if weights == "context" else 1
    made = mix(parts, ["a", "b"], MixtureConfig(weights=weights), evaluator)
    nats, knowledge = evaluator.part_nats(parts)
    np.testing.assert_allclose(made.model.gate[...], fit_gate(nats, knowledge, size), rtol=1e-6)
    shares = np.exp(made.model.log_weights(jnp.asarray(knowledge, jnp.float32))).mean(axis=0)
    assert [float(line.split("mean weight ")[1]) for line in made.more] == pytest.approx(shares, abs=1e-3)
    assert made.losses.keys() == {"train", "val"}
    assert [line.split(":")[0] for line in made.more] == ["part      a", "part      b"]
