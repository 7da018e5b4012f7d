"""Training on windows that are read from a file is training on tokens that the device holds."""

from functools import partial

import chex
import jax
import numpy as np
import pytest

from babyjax.errors import TokenError
from babyjax.models import make_model
from babyjax.options import load_config
from babyjax.training import gradient, source
from babyjax.training.devices import data_mesh
from babyjax.training.gradient import GradientTrainer
from babyjax.training.source import FromFile, OnDevice

V = 7
CONFIG = load_config(["model.n_embd=3", "model.block_size=5", "train.batch_size=4", "train.steps=60"])


@pytest.fixture
def tokens(tmp_path, rng, monkeypatch):
    """A file of tokens that is too large for the device, of which seven steps are read at once."""
    monkeypatch.setattr(gradient, "ON_DEVICE", 0)
    monkeypatch.setattr(source, "TOKENS_AT_ONCE", 7 * 4 * 6)
    rng.integers(0, V, 500).astype(np.uint8).tofile(tmp_path / "tokens.bin")
    return np.memmap(tmp_path / "tokens.bin", np.uint8, "r")


def trainer(tokens, config=CONFIG) -> GradientTrainer:
    return GradientTrainer(partial(make_model, config.model, V), tokens, 5, config.train, config.optimizer)


def losses_of(events):
    return np.concatenate([event.train_losses for event in events])


def test_a_run_on_a_file_is_the_run_in_memory(tokens):
    ours, theirs = trainer(tokens), trainer(np.asarray(tokens).astype(np.int32).copy())
    chex.assert_trees_all_close(
        losses_of(ours.run(ours.init())), losses_of(theirs.run(theirs.init())), rtol=1e-6, atol=1e-7
    )


def test_a_run_on_a_file_that_stops_anywhere_goes_on_exactly(tokens):
    ours = trainer(tokens)
    whole = losses_of(ours.run(ours.init()))
    for stop in (3, 14, 33):
        events = []
        for event in ours.run(ours.init(), (stop,)):
            events.append(event)
            if event.step == stop:
                break
        state = jax.tree.map(lambda leaf: leaf.copy(), events[-1].state)
        again = losses_of(ours.run(state))
        np.testing.assert_array_equal(np.concatenate([losses_of(events), again]), whole)


def test_no_reading_serves_steps_of_another(tokens):
    reader = FromFile(tokens, V, 0, (4, 5), data_mesh(4))
    assert [reader.at(step).steps for step in (0, 6, 7, 20, 21)] == [7, 1, 7, 1, 7]
    np.testing.assert_array_equal(reader.at(22).tokens, FromFile(tokens, V, 0, (4, 5), data_mesh(4)).at(27).tokens)
    assert len(reader._ahead) == 2
    assert not np.array_equal(reader.at(0).tokens, reader.at(7).tokens)
    served = OnDevice(np.asarray(tokens), data_mesh(4)).at(5)
    assert (served.tokens.shape, served.steps) == ((500,), 1024)


def test_an_id_that_is_out_of_range_stops_the_run(tokens):
    with pytest.raises(TokenError, match="token id 6 is outside the vocabulary of 6 tokens"):
        FromFile(tokens, V - 1, 0, (4, 5), data_mesh(4)).at(0)


def test_small_files_and_memory_are_put_on_the_device(tokens, monkeypatch):
    assert trainer(tokens)._from_file
    assert not trainer(np.asarray(tokens).copy())._from_file
    monkeypatch.setattr(gradient, "ON_DEVICE", 500)
    assert not trainer(tokens)._from_file
