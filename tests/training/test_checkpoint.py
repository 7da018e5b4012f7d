import errno
import json
import pickle
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from babyjax import BabyGPT
from babyjax.config import load_config
from babyjax.errors import CheckpointError, DivergenceError
from babyjax.training.checkpoint import Checkpoints
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import init_state
from babyjax.trees import named_arrays

OPTIMIZER = make_optimizer(load_config([]).optimizer, 5000)


def state_of(seed, n_embd=32):
    return init_state(BabyGPT(4, n_embd, key=jax.random.key(seed)), OPTIMIZER)


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "steps").mkdir()
    return Checkpoints(tmp_path / "steps")


def save(checkpoints, *steps, keep=9, **losses):
    for step in steps:
        checkpoints.save(state_of(step), step, keep, losses, {})
    checkpoints.wait()


def test_names_are_paths_without_the_variables_own():
    assert set(named_arrays(state_of(0))) == {"step", "opt_state/0/count"} | {
        f"{tree}/{leaf}"
        for tree in ("model", "opt_state/0/mu", "opt_state/0/nu")
        for leaf in ("token_embedding/embedding", "lm_head/kernel", "lm_head/bias")
    }


def test_what_is_saved_is_restored_to_the_bit(checkpoints):
    save(checkpoints, 7)
    assert checkpoints.steps() == [7]
    saved = checkpoints.load(7)
    chex.assert_trees_all_equal(saved.fill(jax.eval_shape(lambda: state_of(1))), state_of(7))
    chex.assert_trees_all_equal(saved.fill(state_of(1).model, "model"), state_of(7).model)


def test_the_newest_are_kept_and_the_best_by_validation_loss(checkpoints):
    for step, loss in [(10, 3.0), (20, 1.0), (30, None), (40, 2.0), (50, None)]:
        save(checkpoints, step, keep=2, **({} if loss is None else {"val": loss}))
    assert checkpoints.steps() == [20, 40, 50]
    again = Checkpoints(checkpoints.folder)  # as a process that continues
    assert again.best() == 20
    save(again, 60, keep=1, val=0.5)
    assert again.steps() == [60]


def test_infinite_losses_are_no_best_and_stay_json(checkpoints):
    save(checkpoints, 1, val=float("nan"))
    save(checkpoints, 2, val=2.0)
    save(checkpoints, 3, val=float("inf"))
    assert checkpoints.best() == Checkpoints(checkpoints.folder).best() == 2
    assert "Infinity" not in (checkpoints.folder / "3" / "_CHECKPOINT_METADATA").read_text()


def test_a_checkpoint_is_of_the_moment_of_saving_though_its_buffers_are_given_away(checkpoints):
    state = state_of(0)
    checkpoints.save(state, 1, 1, {}, {})
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    checkpoints.wait()
    chex.assert_trees_all_equal(checkpoints.load(1).fill(state_of(5)), state_of(0))


def test_what_a_dead_process_left_is_removed_and_complete_steps_are_not(checkpoints):
    save(checkpoints, 1)
    for name in ("2.orbax-checkpoint-tmp-123", "3.discarded", "1-backup"):
        (checkpoints.folder / name).mkdir()
    assert checkpoints.steps() == [1]
    checkpoints.remove_unfinished()
    assert sorted(item.name for item in checkpoints.folder.iterdir()) == ["1", "1-backup"]


def test_another_shape_or_name_is_refused(checkpoints):
    save(checkpoints, 1)
    saved = checkpoints.load(1)
    with pytest.raises(
        CheckpointError, match=r"model/lm_head/kernel should be float32\[3, 4\], it has float32\[32, 4\]"
    ):
        saved.fill(state_of(0, n_embd=3))
    with pytest.raises(CheckpointError, match=r"other should be .* it has nothing"):
        saved.fill({"other": jnp.zeros(3)})
    with pytest.raises(CheckpointError, match=r"step should be float32\[\], it has int32\[\]"):
        saved.fill({"step": jnp.zeros(())})


def truncate(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_arrays(folder):
    shutil.rmtree(folder / "state")


def damage_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").write_text("{")


def remove_everything(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", [truncate, remove_arrays, damage_metadata, remove_everything])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_too(checkpoints, damage):
    save(checkpoints, 1, 2)
    damage(checkpoints.folder / "2")
    with pytest.raises(CheckpointError, match=r"steps/2 is not a checkpoint"):
        checkpoints.load(2)
    chex.assert_trees_all_equal(checkpoints.load(1).fill(state_of(0)), state_of(1))
    save(checkpoints, 3, val=1.0)  # a damaged neighbour does not stop a run
    assert checkpoints.best() == 3


def test_edited_arrays_are_noticed(checkpoints):
    save(checkpoints, 1)
    about = checkpoints.load(1).about
    arrays = {name: np.array(leaf) for name, leaf in named_arrays(state_of(1)).items()}
    arrays["model/lm_head/bias"][2] += 1e-6
    ocp.save(str(checkpoints.folder / "1"), arrays, overwrite=True, custom_metadata=about)
    with pytest.raises(CheckpointError, match="was changed after it was written: model/lm_head/bias"):
        checkpoints.load(1)
    del arrays["model/lm_head/bias"]
    ocp.save(str(checkpoints.folder / "1"), arrays, overwrite=True, custom_metadata=about)
    with pytest.raises(CheckpointError, match="was changed after it was written: the list of arrays"):
        checkpoints.load(1)


WHOLE = {"schema_version": 1, "step": 1, "losses": {}, "sha256": {}}


@pytest.mark.parametrize(
    "about",
    [None, {}, {**WHOLE, "schema_version": 99}, {**WHOLE, "step": 2}, {**WHOLE, "losses": 3}]
    + [{key: value for key, value in WHOLE.items() if key != missing} for missing in WHOLE],
)
def test_a_foreign_checkpoint_is_told(checkpoints, about):
    ocp.save(str(checkpoints.folder / "1"), {"w": np.zeros(3)}, custom_metadata=about)
    with pytest.raises(CheckpointError, match="steps/1 is not a checkpoint of this version of babyjax at step 1"):
        checkpoints.load(1)


def test_a_number_that_is_not_finite_is_not_saved(checkpoints):
    save(checkpoints, 1)
    state = state_of(2)
    state.model.lm_head.bias[...] = jnp.full(4, jnp.inf)
    with pytest.raises(DivergenceError, match="model/lm_head/bias is no longer finite after step 2"):
        checkpoints.save(state, 2, 9, {}, {})
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize("when", ["at once", "in the background"])
def test_a_save_that_fails_leaves_the_earlier_steps(checkpoints, monkeypatch, when):
    save(checkpoints, 1)

    class Failing:
        def result(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    def save_async(*_, **__):
        return Failing() if when == "in the background" else Failing().result()

    monkeypatch.setattr(ocp, "save_async", save_async)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 2 .*No space left on device\); step 1 is kept"):
        save(checkpoints, 2)
    monkeypatch.undo()
    chex.assert_trees_all_equal(checkpoints.load(1).fill(state_of(0)), state_of(1))


def test_a_save_that_fails_without_saying_so_is_noticed(checkpoints, monkeypatch):
    class Silent:
        def result(self):
            pass

    monkeypatch.setattr(ocp, "save_async", lambda *_, **__: Silent())
    with pytest.raises(CheckpointError, match=r"cannot write .*it is not there\); no earlier step was saved"):
        save(checkpoints, 1)


def test_nothing_is_pickled(checkpoints, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    save(checkpoints, 1)
    chex.assert_trees_all_equal(checkpoints.load(1).fill(state_of(0)), state_of(1))
    assert json.loads((checkpoints.folder / "1" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["step"] == 1
