import jax
import numpy as np
import pytest

from babyjax import batch_at, count_matrix
from babyjax.config import BigramConfig, TrainConfig
from babyjax.errors import OutOfMemoryError
from babyjax.training import devices
from babyjax.training.counting import CountingTrainer

V = 5
TOKENS = np.random.default_rng(0).integers(0, V, 300).astype(np.int32)
TRAIN = TrainConfig(steps=6, batch_size=3, seed=2)


def last_event(**options):
    trainer = CountingTrainer(TOKENS, V, BigramConfig(**options), TRAIN)
    *_, last = trainer.run(trainer.init())
    return last


def test_the_corpus_is_counted_once():
    last = last_event(smoothing=0.5)
    np.testing.assert_array_equal(last.state.model.counts[...], count_matrix(TOKENS, V))
    assert last.state.model.smoothing == 0.5
    assert (last.step, last.last, last.note) == (1, True, "299 pairs")
    assert np.isnan(last.train_losses).tolist() == [True]  # nothing was predicted


def test_windows_are_those_of_the_training_batches():
    expected = np.zeros((V, V), np.int32)
    for step in range(TRAIN.steps):
        np.add.at(expected, tuple(map(np.asarray, batch_at(jax.numpy.asarray(TOKENS), 2, step, 3, 8))), 1)
    np.testing.assert_array_equal(last_event(counting="windows").state.model.counts[...], expected)


def test_a_table_too_large_for_the_device_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "memory_of", lambda device: 100)
    with pytest.raises(OutOfMemoryError, match="a table of 5 x 5 counts"):
        CountingTrainer(TOKENS, V, BigramConfig(), TRAIN).init()
