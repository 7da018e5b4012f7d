"""A run that was cut is, to the byte, the run that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyjax.train import main as train
from babyjax.training.checkpoint import Checkpoints

OPTIONS = ["data=synthetic", "data.length=2000", "data.states=5", "model.n_embd=4", "train.batch_size=4"]


def trained_to(run_dir: Path, steps: int, *options: str) -> None:
    assert train([*OPTIONS, f"run_dir={run_dir}", f"train.steps={steps}", *options]) == 0


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    """Parameters, optimiser state and metrics are the same bytes; metrics have every step once."""
    ours, theirs = (Checkpoints(path / "steps").load(steps).arrays for path in (one, other))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.tobytes() == theirs[name].tobytes(), name
    rows = (one / "metrics.jsonl").read_bytes()
    assert rows == (other / "metrics.jsonl").read_bytes()
    assert [json.loads(row)["step"] for row in rows.splitlines()] == list(range(1, steps + 1))


@settings(max_examples=6)
@given(data=st.data())
def test_any_cut_with_any_checkpoint_interval_gives_the_same_run(tmp_path_factory, data):
    steps = data.draw(st.integers(2, 40), label="steps")
    cuts = data.draw(st.lists(st.integers(1, steps - 1), max_size=3, unique=True).map(sorted), label="cuts")
    evaluate = f"train.eval_interval={data.draw(st.integers(1, 15), label='eval_interval')}"
    folder = tmp_path_factory.mktemp("runs")
    trained_to(folder / "whole", steps, evaluate)
    for reached in [*cuts, steps]:
        interval = data.draw(st.integers(1, 50), label="checkpoint.interval")
        trained_to(folder / "cut", reached, evaluate, f"checkpoint.interval={interval}")
    assert_same_run(folder / "whole", folder / "cut", steps)


@settings(max_examples=6)
@given(steps=st.integers(3, 30), interval=st.integers(1, 10), lost=st.data())
def test_a_run_whose_newest_checkpoints_were_never_written_does_them_again(tmp_path_factory, steps, interval, lost):
    """As after a kill: metrics are ahead of the checkpoints, by any number of rows and half a row."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("train.eval_interval=4", f"checkpoint.interval={interval}", "checkpoint.keep=100")
    trained_to(folder / "whole", steps, *options)
    shutil.copytree(folder / "whole", folder / "cut")
    saved = Checkpoints(folder / "cut" / "steps").steps()
    kept = lost.draw(st.integers(0, len(saved) - 1), label="kept")
    for step in saved[kept:]:
        shutil.rmtree(folder / "cut" / "steps" / str(step))
    (folder / "cut" / "steps" / f"{steps}.orbax-checkpoint-tmp").mkdir()
    with (folder / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "train_')
    trained_to(folder / "cut", steps, *options)
    assert_same_run(folder / "whole", folder / "cut", steps)
    assert Checkpoints(folder / "cut" / "steps").steps() == saved
    assert not list((folder / "cut" / "steps").glob("*tmp*"))


@pytest.mark.parametrize("reached", [8, 10])
def test_the_ledger_of_a_run_that_goes_on_is_taken_back(tmp_path, reached):
    """Where the run ended on an evaluation, and where it was evaluated because it ended."""
    trained_to(tmp_path / "whole", 12, "train.eval_interval=4")
    for steps in (reached, 12):
        trained_to(tmp_path / "cut", steps, "train.eval_interval=4")
        rows = [json.loads(row) for row in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "ledger" in row] == [steps]
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 12)


def test_a_fit_on_counts_cut_at_any_step_is_the_same_run(tmp_path):
    options = ("trainer=counts", "trainer.starts=3", "checkpoint.interval=1", "checkpoint.keep=1000")
    trained_to(tmp_path / "whole", 1, *options)
    steps = len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    for cut in {1, steps // 2, steps - 1}:
        shutil.copytree(tmp_path / "whole", tmp_path / f"cut{cut}")
        for step in range(cut + 1, steps + 1):
            shutil.rmtree(tmp_path / f"cut{cut}" / "steps" / str(step))
        trained_to(tmp_path / f"cut{cut}", 1, *options)
        assert_same_run(tmp_path / "whole", tmp_path / f"cut{cut}", steps)


def test_a_bigram_whose_checkpoint_was_never_written_is_counted_again_to_the_bit(tmp_path):
    for counting in ("corpus", "windows"):
        options = ("model=bigram", "data=synthetic", "data.length=2000", f"model.counting={counting}", "train.steps=50")
        one, two = tmp_path / f"{counting}1", tmp_path / f"{counting}2"
        for run_dir in (one, two):
            assert train([*options, f"run_dir={run_dir}"]) == 0
        shutil.rmtree(two / "steps" / "1")
        assert train([*options, f"run_dir={two}"]) == 0
        assert_same_run(one, two, 1)


def command(run_dir: Path, steps: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "babyjax.train", *OPTIONS, f"run_dir={run_dir}", f"train.steps={steps}", *options]


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_and_loses_nothing(tmp_path, pytestconfig):
    """SIGKILL at seeded random times, most of them while checkpoints are being written: one every two steps."""
    kills, clock = pytestconfig.getoption("kills"), random.Random(0)
    options = ("train.eval_interval=7", "checkpoint.interval=2")
    run_dir, landed, highest = tmp_path / "killed", 0, 0
    # A step takes about 25 ms, nearly all of it to save: long enough a run for every kill to find it alive.
    steps = 80 * (kills + 1)
    for _ in range(kills):
        process = subprocess.Popen(
            command(run_dir, steps, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if clock.random() < 0.2:  # anywhere from the start of Python on
            time.sleep(clock.uniform(0, 3))
        else:  # after it has begun to train
            rows = (run_dir / "metrics.jsonl").stat().st_size if (run_dir / "metrics.jsonl").exists() else 0
            while process.poll() is None and (
                not (run_dir / "metrics.jsonl").exists() or (run_dir / "metrics.jsonl").stat().st_size <= rows
            ):
                time.sleep(0.01)
            time.sleep(clock.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, out + err
        assert err == ""
        landed += 1
        complete = max(Checkpoints(run_dir / "steps").steps(), default=0)
        assert complete >= highest
        highest = complete
        if complete:
            Checkpoints(run_dir / "steps").load(complete)  # whole, by its sha256
    last = subprocess.run(command(run_dir, steps, *options), capture_output=True, text=True, check=False)
    assert (last.returncode, last.stderr) == (0, "")
    if highest:
        assert f"continuing from step {highest:,}" in last.stdout
    whole = subprocess.run(command(tmp_path / "whole", steps, *options), capture_output=True, text=True, check=False)
    assert whole.returncode == 0
    assert_same_run(run_dir, tmp_path / "whole", steps)
    print(f"{landed} kills, {highest} of {steps} steps when last killed, nothing lost")


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
    assert subprocess.run(command(run_dir, 10), capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(8, 1, 2), (1, 8)])
def test_a_run_moves_between_devices_with_equal_parameters(tmp_path, counts):
    run_dir, steps = tmp_path / "run", 0
    for count in counts:
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        program = (
            "import sys\nfrom babyjax.training.checkpoint import Checkpoints\nfrom babyjax.train import main\n"
            "import jax, numpy as np\nfrom babyjax.config import load_config\nfrom babyjax.models import make_model\n"
            "from babyjax.training.devices import data_mesh, replicated\nfrom pathlib import Path\n"
            f"assert jax.device_count() == {count}\n"
            "if sys.argv[1] != '0':\n"
            "    saved = Checkpoints(Path(sys.argv[2]) / 'steps').load(int(sys.argv[1]))\n"
            "    start = lambda: make_model(load_config(sys.argv[3:]).model, 5, jax.random.key(0))\n"
            f"    mesh = data_mesh(8)\n    assert mesh.size == {count}\n"
            "    placed = saved.fill(jax.jit(start, out_shardings=replicated(mesh))(), 'model')\n"
            "    for name in ('token_embedding/embedding', 'lm_head/kernel'):\n"
            "        room, leaf = name.split('/')\n"
            "        array = getattr(getattr(placed, room), leaf)[...]\n"
            f"        assert len(array.sharding.device_set) == {count}\n"
            "        assert np.asarray(array).tobytes() == saved.arrays['model/' + name].tobytes()\n"
            "sys.exit(main(sys.argv[3:]))"
        )
        arguments = [*OPTIONS, "train.batch_size=8", f"run_dir={run_dir}", f"train.steps={steps + 10}"]
        ran = subprocess.run(
            [sys.executable, "-c", program, str(steps), str(run_dir), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert (f"on {count} x cpu" in ran.stdout) == (count > 1)
        assert ("continuing from step" in ran.stdout) == bool(steps)
        steps += 10
    trained_to(tmp_path / "one", steps, "train.batch_size=8")
    one, moved = (Checkpoints(path / "steps").load(steps).arrays for path in (tmp_path / "one", run_dir))
    for name, array in moved.items():
        np.testing.assert_allclose(array, one[name], rtol=1e-3, atol=1e-5)
