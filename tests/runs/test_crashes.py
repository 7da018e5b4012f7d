"""A process may die, or the disk refuse, at any file operation: the run continues as if nothing had happened."""

import contextlib
import errno
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import mostly_slow
from small_runs import CORPUS, TOKENIZER, config_of, contents, event_of, saved

from babyjax import Bigram, Run
from babyjax.errors import RunError
from babyjax.files import MANIFEST
from babyjax.runs import directory
from babyjax.runs import run as run_module
from babyjax.runs.array_digest import digest_of
from babyjax.runs.arrays import UNFINISHED
from babyjax.runs.directory import load_arrays
from babyjax.runs.manifest import read_manifest
from babyjax.training.events import State

STEPS = 3
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


class Killed(BaseException):
    """Stands for the end of the process."""


def disk_full():
    return OSError(errno.ENOSPC, "No space left on device")


class FileOperations:
    """Counts changes of the file system, seen by an audit hook, and raises an error from one of them on."""

    def __init__(self):
        self.armed = False
        sys.addaudithook(self._hook)

    def run(self, action, fail_at=None, error=disk_full):
        self.count, self.fail_at, self.error, self.armed = 0, fail_at, error, True
        try:
            action()
        finally:
            self.armed, self.fail_at = False, None

    def _hook(self, event, arguments):
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if self.armed and (written or event in CHANGES):
            self.step()

    def step(self):
        self.count += 1
        if self.fail_at is not None and self.count >= self.fail_at:
            raise self.error()


OPERATIONS = FileOperations()


def begin_writing(path, arrays):
    """In place of Orbax, which is slower, and whose threads are waited for at exit when they fail."""

    def end():
        unfinished = path.with_name(path.name + UNFINISHED)
        unfinished.mkdir()
        np.savez(unfinished / "arrays.npz", **arrays)
        (unfinished / "_CHECKPOINT_METADATA").write_text("{}")
        unfinished.rename(path)

    return end


def read_arrays(path, digest, *place_and_part):
    with np.load(path / "arrays.npz") as arrays:
        arrays = dict(arrays)
    assert digest_of(arrays) == digest
    return arrays


@pytest.fixture(autouse=True, scope="module")
def fast_arrays():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "begin_writing", begin_writing)
        patch.setattr(run_module, "check_arrays", read_arrays)
        patch.setattr(directory, "read_arrays", read_arrays)
        patch.setattr(run_module, "version", lambda package: "1")  # reading it takes longer than all the rest
        yield


def train(folder, *arguments, steps=STEPS):
    """Count to `steps`, saving after each step and keeping one checkpoint and the best, the first."""
    config = config_of(folder, "checkpoint.interval=1", "checkpoint.keep=1", "trainer=sgd", *arguments)
    with Run.open(config, CORPUS, TOKENIZER) as run:
        state = run.restore(State(np.int32(0), Bigram(jnp.zeros((2, 2), jnp.int32)), ()))
        if state.step == steps:
            return
        run.begin()
        for step in range(int(state.step) + 1, steps + 1):
            state = State(np.int32(step), jax.tree.map(lambda leaf, step=step: leaf + step, state.model), ())
            run.record(event_of(step, val=1.0 * step, last=step == steps)._replace(state=state), evaluated=True)
        run.wait()


def arrays_of(folder):
    checkpoints = saved(folder)
    return {step: load_arrays(folder, checkpoints, step) for step in checkpoints}


def assert_equal_runs(folder, whole):
    """Arrays, metrics and results are the same. Nothing else is left but what the next run would remove."""
    ours, theirs = contents(folder), contents(whole)
    assert not theirs.keys() - ours.keys()
    left = {name for name in ours.keys() - theirs.keys() if not name.startswith(".babyjax-")}
    assert all(name.startswith(tuple(f"steps/{step}" for step in read_manifest(folder).pending)) for name in left)
    for name in ("metrics.jsonl", "result.json", "corpus.txt", "tokenizer.json", "config.yaml"):
        assert ours[name] == theirs[name], name
    ours, theirs = arrays_of(folder), arrays_of(whole)
    assert ours.keys() == theirs.keys() == {1, STEPS}
    for step, arrays in ours.items():
        assert all(array.tobytes() == theirs[step][name].tobytes() for name, array in arrays.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fast_arrays):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


@pytest.mark.parametrize("error", [Killed, pytest.param(disk_full, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", mostly_slow(["new", "continued", "overwritten"], "continued"))
def test_a_run_that_ends_at_any_file_operation_continues(tmp_path, whole, scenario, error):
    arguments = ["overwrite=true"] if scenario == "overwritten" else []
    if scenario == "continued":
        train(tmp_path / "before", steps=2)
    elif scenario == "overwritten":
        train(tmp_path / "before", "model.n_embd=4", steps=4)
    fail_at, ended = 0, False
    while not ended:
        fail_at += 1
        folder = tmp_path / str(fail_at)
        if scenario != "new":
            shutil.copytree(tmp_path / "before", folder)
        with contextlib.suppress(Killed if error is Killed else RunError):
            OPERATIONS.run(lambda folder=folder: train(folder, *arguments), fail_at, error)
            ended = True
        before = arrays_of(folder) if (folder / MANIFEST).exists() else {}  # every one listed is whole
        assert scenario != "continued" or max(before) >= 2
        train(folder, *arguments)
        assert max(arrays_of(folder)) >= max(before, default=0) or scenario == "overwritten"
        assert_equal_runs(folder, whole)
    assert fail_at > 40
