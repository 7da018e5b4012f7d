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
from babyjax.runs import arrays as arrays_module
from babyjax.runs.array_digest import digest_of
from babyjax.runs.arrays import arrays_to_save, begin_writing, check_arrays, fill, placement_of, read_arrays
from babyjax.trees import named_arrays


def write(path, tree):
    """Write the arrays of a tree to a folder. Returns it and their digest."""
    digest = digest_of(arrays := arrays_to_save(tree, 1))
    begin_writing(path, arrays)()
    return path, digest


@pytest.fixture
def written(tmp_path):
    """A folder with the arrays of state 1, and their digest."""
    return write(tmp_path / "1", state_of(1))


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


def test_what_is_written_is_read_to_devices(written):
    template = state_of(2)
    path, digest = written
    arrays = read_arrays(path, digest, placement_of(template))
    on_devices = {name: leaf.sharding for name, leaf in named_arrays(template).items() if isinstance(leaf, jax.Array)}
    assert {name: array.sharding for name, array in arrays.items() if isinstance(array, jax.Array)} == on_devices
    assert len(on_devices) > 5
    chex.assert_trees_all_equal(fill(arrays, template), state_of(1))


@pytest.mark.parametrize("size", [1, 40, 1 << 30])
def test_arrays_are_read_in_groups(written, monkeypatch, size):
    for limit in ("USED", "CHECKED"):
        monkeypatch.setattr(arrays_module, limit, size)
    path, digest = written
    chex.assert_trees_all_equal(fill(read_arrays(path, digest), state_of(2)), state_of(1))
    check_arrays(path, digest)
    for read in (check_arrays, read_arrays):
        with pytest.raises(CheckpointError, match="/1 was changed after it was written"):
            read(path, digest[::-1])


def test_a_part_is_read_and_the_rest_checked(written):
    path, digest = written
    arrays = read_arrays(path, digest, part="model/")
    assert {name.partition("/")[0] for name in arrays} == {"model"}
    assert all(isinstance(array, jax.Array) and not array.committed for array in arrays.values())
    chex.assert_trees_all_equal(fill(arrays, state_of(2).model, "model"), state_of(1).model)


def test_a_part_in_float64_is_checked_to_the_bit_before_it_is_rounded(tmp_path):
    wide = {"model": {"x": np.random.default_rng(0).normal(size=5)}}
    arrays = read_arrays(*write(tmp_path / "1", wide), part="model/")
    np.testing.assert_allclose(arrays["model/x"], wide["model"]["x"], rtol=1e-6)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_counts_are_compressed_and_parameters_are_not(tmp_path, kind):
    write(tmp_path / "1", {"model": {"x": np.zeros(1 << 16, kind)}})
    size = sum(path.stat().st_size for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert (size < 1 << 16) == (kind == np.int32)


def test_numpy_leaves_stay_on_the_host_in_float64(tmp_path):
    tree = {"host": np.float64(1) / np.arange(1, 4), "device": jnp.ones(2), "scalar": np.float64(1 / 3)}
    filled = fill(read_arrays(*write(tmp_path / "1", tree)), tree)
    assert isinstance(filled["device"], jax.Array)
    assert isinstance(filled["host"], np.ndarray)
    assert filled["host"].tobytes() == tree["host"].tobytes()
    assert filled["scalar"].dtype == np.float64


def test_a_copy_is_of_its_moment_though_the_buffers_are_donated():
    state = jax.tree.map(jnp.copy, state_of(0))
    arrays = arrays_to_save(state, 0)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    chex.assert_trees_all_equal(fill(arrays, state_of(1)), state_of(0))


def test_a_number_that_is_not_finite_is_refused():
    model = jax.tree.map(jnp.copy, state_of(2).model)
    model.lm_head.bias[...] = jnp.full(4, jnp.inf)
    with pytest.raises(DivergenceError, match="model/lm_head/bias has NaN or infinite values after step 2,000"):
        arrays_to_save(state_of(2)._replace(model=model), 2000)


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
    path, digest = written
    damage(path)
    with pytest.raises(CheckpointError, match=r"/1 (cannot be read|was changed)") as caught:
        read_arrays(path, digest)
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
    path, digest = written
    arrays = read_arrays(path, digest)
    edit(arrays)
    ocp.save(str(path), arrays, overwrite=True)
    with pytest.raises(CheckpointError, match="/1 was changed after it was written"):
        read_arrays(path, digest)


def test_a_folder_that_cannot_be_made_is_found_before_orbax_waits_for_it(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Orbax's threads would keep the process for five minutes")

    def full(path, mode=0o777):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp, "save", refuse)
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        begin_writing(tmp_path / "1", {"x": np.zeros(1)})()


def test_a_full_disk_is_called_so_by_its_error_code():
    text = "RESOURCE_EXHAUSTED: Error writing /a/b [os_error_code='28'] [tensorstore_spec='{}']"
    assert arrays_module._reason(ValueError(text)) == "No space left on device"


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    path, digest = write(tmp_path / "1", state_of(1))
    assert digest_of(read_arrays(path, digest)) == digest
