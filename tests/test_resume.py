"""A run that was stopped and continued has the same bytes as the run that never stopped."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import babyjax
from babyjax.files import MANIFEST
from babyjax.runs.directory import load_arrays, saved_checkpoints
from babyjax.runs.manifest import read_manifest
from babyjax.train import main as train

SYNTHETIC = ("data=synthetic", "data.length=2000", "data.states=5")
TINY = (*SYNTHETIC, "model.n_embd=4", "train.batch_size=4")


def train_to(run_dir: Path, steps: int, *options: str) -> None:
    assert train([*TINY, f"run_dir={run_dir}", f"train.steps={steps}", *options]) == 0


def checkpoints(run_dir: Path) -> dict:
    return saved_checkpoints(run_dir, read_manifest(run_dir)) if (run_dir / MANIFEST).exists() else {}


def newest_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    saved = checkpoints(run_dir)
    return load_arrays(run_dir, saved, max(saved))


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    """The newest arrays and the metrics have the same bytes; the metrics have every step once."""
    ours, theirs = newest_arrays(one), newest_arrays(other)
    assert ours.keys() == theirs.keys()
    assert int(ours["step"]) == steps
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert array.tobytes() == theirs[name].tobytes(), name
    rows = (one / "metrics.jsonl").read_bytes()
    assert rows == (other / "metrics.jsonl").read_bytes()
    assert [json.loads(row)["step"] for row in rows.splitlines()] == list(range(1, steps + 1))


def lose(run_dir: Path, steps: list[int]) -> None:
    """Remove checkpoints, and leave what a process leaves that is killed while it writes the first of them."""
    for step in steps:
        shutil.rmtree(run_dir / "steps" / str(step))
    (run_dir / "steps" / f"{steps[0]}.orbax-checkpoint-tmp").mkdir()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "train_')


@pytest.mark.slow
@settings(max_examples=4)
@given(data=st.data())
def test_stopped_anywhere_with_any_checkpoint_interval(tmp_path_factory, data):
    steps = data.draw(st.integers(2, 40), label="steps")
    cuts = data.draw(st.lists(st.integers(1, steps - 1), max_size=3, unique=True).map(sorted), label="cuts")
    evaluate = f"train.eval_interval={data.draw(st.integers(1, 15), label='eval_interval')}"
    folder = tmp_path_factory.mktemp("runs")
    train_to(folder / "whole", steps, evaluate)
    for reached in [*cuts, steps]:
        interval = data.draw(st.integers(1, 50), label="checkpoint.interval")
        train_to(folder / "cut", reached, evaluate, f"checkpoint.interval={interval}")
    assert_same_run(folder / "cut", folder / "whole", steps)
    assert (folder / "cut" / "result.json").read_bytes() == (folder / "whole" / "result.json").read_bytes()


@pytest.mark.slow
@settings(max_examples=6)
@given(steps=st.integers(3, 30), interval=st.integers(1, 10), data=st.data())
def test_lost_checkpoints_are_made_again(tmp_path_factory, steps, interval, data):
    """The metrics are ahead of the checkpoints by any number of rows and half a row, as after a kill."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("train.eval_interval=4", f"checkpoint.interval={interval}", "checkpoint.keep=100")
    train_to(folder / "whole", steps, *options)
    shutil.copytree(folder / "whole", folder / "cut")
    saved = list(checkpoints(folder / "cut"))
    kept = data.draw(st.integers(0, len(saved) - 1), label="kept")
    lose(folder / "cut", saved[kept:])
    train_to(folder / "cut", steps, *options)
    assert_same_run(folder / "cut", folder / "whole", steps)
    assert list(checkpoints(folder / "cut")) == saved
    assert sorted(os.listdir(folder / "cut" / "steps")) == sorted(map(str, saved))


@pytest.mark.slow
def test_another_eval_interval_keeps_the_rows_already_written(tmp_path):
    """Also the evaluation of the last step before it stopped, and a run that ended between two evaluations."""
    for steps, interval in ((8, 4), (11, 5), (14, 7), (15, 100)):
        train_to(tmp_path / "run", steps, f"train.eval_interval={interval}")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 16))
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 10, 14]
    assert all(("eval_train_loss" in row) == ("val_loss" in row) for row in rows)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 15
    train_to(tmp_path / "whole", 15, "train.eval_interval=100")
    ours, theirs = newest_arrays(tmp_path / "run"), newest_arrays(tmp_path / "whole")
    assert all(array.tobytes() == theirs[name].tobytes() for name, array in ours.items())


@pytest.mark.parametrize("reached", [8, pytest.param(10, marks=pytest.mark.slow)])
def test_the_results_of_a_run_that_continues_are_replaced(tmp_path, reached):
    """The run ended on an evaluation, and it was evaluated because it ended."""
    train_to(tmp_path / "whole", 12, "train.eval_interval=4")
    for steps in (reached, 12):
        train_to(tmp_path / "cut", steps, "train.eval_interval=4")
        assert json.loads((tmp_path / "cut" / "result.json").read_text())["step"] == steps
    assert_same_run(tmp_path / "cut", tmp_path / "whole", 12)
    for name in ("result.json", "decomposition.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_fit_on_counts_stopped_at_any_step(tmp_path):
    options = ("trainer=counts", "trainer.starts=3", "checkpoint.interval=1", "checkpoint.keep=1000")
    train_to(tmp_path / "whole", 1, *options)
    steps = len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    for cut in {1, steps // 2, steps - 1}:
        shutil.copytree(tmp_path / "whole", tmp_path / f"cut{cut}")
        lose(tmp_path / f"cut{cut}", list(range(cut + 1, steps + 1)))
        train_to(tmp_path / f"cut{cut}", 1, *options)
        assert_same_run(tmp_path / f"cut{cut}", tmp_path / "whole", steps)


@pytest.mark.parametrize("counting", ["corpus", "windows"])
def test_a_bigram_whose_checkpoint_was_lost_is_counted_again(tmp_path, counting):
    options = ("model=bigram", *SYNTHETIC, f"model.counting={counting}", "train.steps=50")
    for name in ("one", "two"):
        assert train([*options, f"run_dir={tmp_path / name}"]) == 0
    lose(tmp_path / "two", [1])
    assert train([*options, f"run_dir={tmp_path / 'two'}"]) == 0
    assert_same_run(tmp_path / "two", tmp_path / "one", 1)


def command(run_dir: Path, steps: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "babyjax.train", *TINY, f"run_dir={run_dir}", f"train.steps={steps}", *options]


def finish(run_dir: Path, steps: int, *options: str) -> str:
    """Run a training process to its end and return what it printed."""
    ended = subprocess.run(command(run_dir, steps, *options), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, pytestconfig):
    """SIGKILL at seeded random times, most of them while one of the many checkpoints is written."""
    kills, clock = pytestconfig.getoption("kills"), random.Random(0)
    options = ("train.eval_interval=7", "checkpoint.interval=2")
    run_dir, highest = tmp_path / "killed", 0
    metrics = run_dir / "metrics.jsonl"
    # A step takes about 25 ms, most of it to save: the run is long enough for every kill to find it alive.
    steps = 40 * (kills + 1)
    for _ in range(kills):
        process = subprocess.Popen(
            command(run_dir, steps, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if clock.random() < 0.2:  # at any time from the start of Python
            time.sleep(clock.uniform(0, 3))
        else:  # after training has begun
            rows = metrics.stat().st_size if metrics.exists() else 0
            while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= rows):
                time.sleep(0.01)
            time.sleep(clock.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, out + err
        assert err == ""
        complete = max(checkpoints(run_dir), default=0)
        assert complete >= highest
        highest = complete
        if complete:
            newest_arrays(run_dir)  # raises if the bytes are not those of the digests
    out = finish(run_dir, steps, *options)
    if highest:
        assert f"continuing from step {highest:,}" in out
    train_to(tmp_path / "whole", steps, *options)
    assert_same_run(run_dir, tmp_path / "whole", steps)
    print(f"{kills} kills, {highest} of {steps} steps when last killed, nothing lost")


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_does_not_block(tmp_path):
    run_dir = tmp_path / "run"
    first = subprocess.Popen(command(run_dir, 2_000_000_000), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run_dir / "metrics.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.05)
    for overwrite in ("overwrite=false", "overwrite=true"):
        second = subprocess.run(command(run_dir, 10, overwrite), capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: another process is training in {run_dir}")
    first.kill()
    first.wait()
    finish(run_dir, 10)


MOVED = """
import sys
import jax, numpy as np
import babyjax
from babyjax.runs.directory import load_run
from babyjax.train import main

devices, argv = int(sys.argv[1]), sys.argv[2:]
assert jax.device_count() == devices
config = babyjax.load_config(argv)
task = babyjax.load_task(config)
with babyjax.Run.open(config, task.corpus, task.tokenizer) as run:
    if run.step:
        state = run.restore(babyjax.make_trainer(config, task).init())
        placed, saved = jax.tree.leaves(state.model), jax.tree.leaves(load_run(config.run_dir).model)
        for ours, theirs in zip(placed, saved, strict=True):
            assert len(ours.sharding.device_set) == devices
            split = config.train.mesh == "fsdp" and devices > 1 and ours.size >= 4096
            assert ours.addressable_shards[0].data.size == (ours.size // devices if split else ours.size)
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
sys.exit(main(argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize("legs", [("8 data", "1 data", "2 fsdp"), ("1 fsdp", "8 fsdp", "4 data")])
def test_moved_between_devices(tmp_path, legs):
    """The parameters have the same bytes on other devices, whole or split; further steps differ by rounding."""
    run_dir, wide = tmp_path / "run", ("model.n_embd=1024", "train.batch_size=8")
    for leg, (count, kind) in enumerate((int(count), kind) for count, kind in map(str.split, legs)):
        arguments = [*TINY, *wide, f"train.mesh={kind}", f"run_dir={run_dir}", f"train.steps={10 * (leg + 1)}"]
        ran = subprocess.run(
            [sys.executable, "-c", MOVED, str(count), *arguments],
            env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert (f"for {count} x cpu" in ran.stdout) == (count > 1)
        assert ("continuing from step" in ran.stdout) == bool(leg)
    train_to(tmp_path / "one", 10 * len(legs), *wide)
    one = newest_arrays(tmp_path / "one")
    for name, array in newest_arrays(run_dir).items():
        np.testing.assert_allclose(array, one[name], rtol=1e-3, atol=1e-5)


FULL = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
runpy.run_module("babyjax.train", run_name="__main__")
"""


@contextmanager
def files_of_at_most(size: int):
    """Let the kernel refuse to write beyond `size` bytes of a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_sentence_and_keeps_earlier_steps(call, tmp_path):
    """The disk has no room for a checkpoint, for the metrics, for anything."""
    (tmp_path / "mine.txt").write_text("abcabd" * 50)
    options = ("data.path=mine.txt", "run_dir=here", "model.n_embd=2000")

    def error_at(size: int) -> str:
        with files_of_at_most(size):
            status, _, error = call("train", *options, "train.steps=20")
        assert (status, error.count("\n")) == (1, 1), error
        return error

    assert call("train", *options, "train.steps=10")[0] == 0
    error = error_at(20_000)
    assert error.startswith("error: cannot write the checkpoint of step 20")
    assert "step 10 is kept" in error
    assert babyjax.load_run(tmp_path / "here").step == 10
    metrics = (tmp_path / "here" / "metrics.jsonl").stat().st_size
    manifest = (tmp_path / "here" / MANIFEST).stat().st_size
    for size in (0, 100, 1500, metrics + 30, manifest + 30):  # not even the small files can be written
        assert error_at(size).startswith("error: cannot write")
        assert babyjax.load_run(tmp_path / "here").step == 10
    # In a process of its own nothing is compiled yet, and threads and exit handlers end with it.
    program = [sys.executable, "-c", FULL, *options, "train.steps=20"]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith("error: cannot write")
    assert call("train", *options, "train.steps=20")[0] == 0
    assert babyjax.load_run(tmp_path / "here").step == 20
