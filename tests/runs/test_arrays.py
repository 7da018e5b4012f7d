import errno
import os
import pickle
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from small_runs import state_of

from babyjax.errors import CheckpointError, DivergenceError
from babyjax.runs.arrays import digest_of, fill, host_copy, read_arrays, write_arrays
from babyjax.trees import named_arrays


@pytest.fixture
def written(tmp_path):
    """A folder with the arrays of state 1, and their digest."""
    arrays = host_copy(state_of(1), 1)
    write_arrays(tmp_path / "1", arrays)
    return tmp_path / "1", digest_of(arrays)


def test_names_are_paths_without_the_variables_own():
    assert set(named_arrays(state_of(0))) == {"step", "rest/0/count"} | {
        f"{tree}/{leaf}"
        for tree in ("model", "rest/0/mu", "rest/0/nu")
        for leaf in ("token_embedding/embedding", "lm_head/kernel", "lm_head/bias")
    }


def test_what_is_written_is_read_to_the_bit(written):
    arrays = read_arrays(*written)
    assert all(type(array) is np.ndarray for array in arrays.values())
    template = jax.eval_shape(lambda state: state, state_of(2))
    chex.assert_trees_all_equal(fill(arrays, template), state_of(1))
    chex.assert_trees_all_equal(fill(arrays, state_of(2).model, "model"), state_of(1).model)


def test_numpy_leaves_stay_on_the_host_in_float64(tmp_path):
    tree = {"host": np.float64(1) / np.arange(1, 4), "device": jnp.ones(2), "scalar": np.float64(1 / 3)}
    write_arrays(tmp_path / "1", arrays := host_copy(tree, 1))
    filled = fill(read_arrays(tmp_path / "1", digest_of(arrays)), tree)
    assert isinstance(filled["device"], jax.Array)
    assert isinstance(filled["host"], np.ndarray)
    assert filled["host"].tobytes() == tree["host"].tobytes()
    assert filled["scalar"].dtype == np.float64


def test_a_copy_is_of_its_moment_though_the_buffers_are_donated():
    state = jax.tree.map(jnp.copy, state_of(0))
    arrays = host_copy(state, 0)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    chex.assert_trees_all_equal(fill(arrays, state_of(1)), state_of(0))


def test_a_number_that_is_not_finite_is_refused():
    model = jax.tree.map(jnp.copy, state_of(2).model)
    model.lm_head.bias[...] = jnp.full(4, jnp.inf)
    with pytest.raises(DivergenceError, match="model/lm_head/bias has NaN or infinite values after step 2,000"):
        host_copy(state_of(2)._replace(model=model), 2000)


def test_another_name_shape_or_type_is_refused(written):
    arrays = read_arrays(*written)
    wide = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, 1)), state_of(0).model)
    with pytest.raises(
        CheckpointError, match=r"model/\S+ is float32\[3, 4\] in the checkpoint, expected float32\[3, 4, 1\]"
    ):
        fill(arrays, {"kernel": wide.lm_head.kernel}, "model/lm_head")
    with pytest.raises(CheckpointError, match=r"other is missing in the checkpoint, expected float32\[3\]"):
        fill(arrays, {"other": jnp.zeros(3)})
    with pytest.raises(CheckpointError, match=r"step is int32\[\] in the checkpoint, expected float32\[\]"):
        fill(arrays, {"step": jnp.zeros(())})


def truncate(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(folder):
    for path in folder.rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


def remove_manifest(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


def damage_metadata(folder):
    (folder / "state" / "_METADATA").write_text("{")


def remove_arrays(folder):
    shutil.rmtree(folder / "state")


def remove_everything(folder):
    shutil.rmtree(folder)


DAMAGES = [truncate, flip_bits, remove_manifest, damage_metadata, remove_arrays, remove_everything]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's event loop
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_in_one_sentence_with_its_reason(written, damage):
    path, sha256 = written
    damage(path)
    with pytest.raises(CheckpointError, match=r"/1 (cannot be read|was changed)") as caught:
        read_arrays(path, sha256)
    assert len(str(caught.value)) < 400
    assert "tensorstore_spec" not in str(caught.value)
    assert "NoneType" not in str(caught.value)


def change_a_number(arrays):
    arrays["model/lm_head/bias"][2] += 1e-6


def change_a_shape(arrays):
    arrays["model/lm_head/kernel"] = arrays["model/lm_head/kernel"].reshape(4, 3)


def change_a_type(arrays):
    arrays["step"] = arrays["step"].view(np.uint32)


def remove_one(arrays):
    del arrays["model/lm_head/bias"]


def add_one(arrays):
    arrays["more"] = np.zeros(1)


def exchange_two(arrays):
    one, two = "rest/0/mu/lm_head/bias", "model/lm_head/bias"
    arrays[one], arrays[two] = arrays[two], arrays[one]


@pytest.mark.parametrize("edit", [change_a_number, change_a_shape, change_a_type, remove_one, add_one, exchange_two])
def test_edited_arrays_are_noticed(written, edit):
    path, sha256 = written
    arrays = read_arrays(path, sha256)
    edit(arrays)
    ocp.save(str(path), arrays, overwrite=True)
    with pytest.raises(CheckpointError, match="/1 was changed after it was written"):
        read_arrays(path, sha256)


def test_a_folder_that_cannot_be_made_is_found_before_orbax_waits_for_it(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Orbax's threads would keep the process for five minutes")

    def full(path, mode=0o777):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp, "save", refuse)
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_arrays(tmp_path / "1", {"x": np.zeros(1)})


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    write_arrays(tmp_path / "1", arrays := host_copy(state_of(1), 1))
    assert digest_of(read_arrays(tmp_path / "1", digest_of(arrays))) == digest_of(arrays)
