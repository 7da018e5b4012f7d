"""Runs that several processes train together: virtual CPU devices, and gloo between the processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from babyjax import processes
from babyjax.data.corpus import load_corpus
from babyjax.data.preparing import prepare_corpus
from babyjax.errors import ConfigError
from babyjax.native_output import ENDED, FATAL, GLOO, LINES, LOST, MISSED
from babyjax.options import config_to_dict, load_config
from babyjax.runs.manifest import read_manifest
from babyjax.sweep import main as sweep
from experiments.processes import __main__ as experiment
from experiments.processes.__main__ import HERE, OPTIONS, furthest, losses_of, start, text

STEPS = 30
FEW = 12  # for two processes, whose steps are slow
# Without a schedule one compiled program serves runs of any number of steps.
CONSTANT = ["optimizer.schedule=constant", "optimizer.warmup_steps=0"]
# Most tests do not depend on what a network computes, so theirs compiles at once.
SMALL = ["model=babygpt-v2-position", "model.n_embd=256", "train.batch_size=16", "optimizer.learning_rate=1e-3"]
TEXT = ["data=synthetic", "data.length=20000"]
SAVED = [f"train.steps={STEPS}", "train.eval_interval=10", "checkpoint.interval=10", "train.eval_tokens=500"]
RUN = [*SMALL, *TEXT, *CONSTANT, *SAVED]


# Takes windows from a file however few tokens there are.
FROM_FILE = """
import sys
from babyjax.cli import run_command
from babyjax.train import help_text, main
from babyjax.training import gradient, source

gradient.ON_DEVICE, source.TOKENS_AT_ONCE = 0, 2000
run_command(main, help_text)
"""


# Stops after the first evaluation, as by a signal.
STOPPING = """
import os, signal
from babyjax.cli import run_command
from babyjax.runs.run import Run
from babyjax.train import help_text, main

def record(self, event, *, evaluated, real=Run.record):
    real(self, event, evaluated=evaluated)
    if evaluated and event.step:
        os.kill(os.getpid(), signal.SIGTERM)

Run.record = record
run_command(main, help_text)
"""


# Process 0 may not notice a lost process before this timeout.
IMPATIENT = """
from babyjax import processes
processes.SILENCE_SECONDS = 10
"""
COMMAND = """
from babyjax.cli import run_command
from babyjax.train import help_text, main
run_command(main, help_text)
"""


def finish(started):
    return experiment.finish(started, seconds=300)


def lines_of(run):
    return (run / "metrics.jsonl").read_bytes()


def wait_for_step(run, step, limit=240):
    """Wait until a checkpoint of `step` is complete."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if (run / "run.json").exists() and any(each.step >= step for each in read_manifest(run).checkpoints):
            return
        time.sleep(0.1)
    raise AssertionError("no checkpoint in time")


@contextmanager
def once(name):
    """A folder that the workers of a test run share, and whether this one is the first to need what belongs there."""
    of_this_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(os.environ["BABYJAX_TEST_CACHE"], f"{name}-{of_this_run}")
    with FileLock(f"{folder}.lock"):
        first = not folder.exists()
        try:
            yield folder, first
        except BaseException:
            if first:
                shutil.rmtree(folder, ignore_errors=True)
            raise


@pytest.fixture(scope="module")
def alone():
    """A run on one device."""
    with once("alone") as (run, first):
        if first:
            ((status, _, errors),) = finish(start(1, 1, [*RUN, f"run_dir={run}"]))
            assert status == 0, errors
    return run


@pytest.fixture(scope="module")
def together():
    """A run of two processes of four devices, which hold shares of its state."""
    with once("together") as (run, first):
        if first:
            shows, silent = finish(start(2, 4, [*RUN, "train.mesh=fsdp", f"run_dir={run}"]))
            assert (shows[0], silent[0]) == (0, 0), shows[2] + silent[2]
            assert (shows[2], silent[1], silent[2]) == ("", "", "")  # one process shows
            assert "for 8 x cpu" in shows[1]
    return run


@pytest.mark.slow
def test_each_process_reads_its_own_windows_from_a_file(tmp_path):
    (tmp_path / "text.txt").write_text(load_corpus("synthetic", length=20000).text, encoding="utf-8")
    prepare_corpus(tmp_path / "text", str(tmp_path / "text.txt"))
    arguments = [each for each in RUN if not each.startswith("data")] + [f"data.path={tmp_path / 'text'}"]
    for number, program in ((1, ("-m", "babyjax", "train")), (2, ("-c", FROM_FILE))):
        for status, _, errors in finish(
            start(number, 2, [*arguments, f"run_dir={tmp_path / str(number)}"], (), program)
        ):
            assert status == 0, errors
    assert 0 < furthest(losses_of(tmp_path / "2"), losses_of(tmp_path / "1")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "mesh", "steps"), [(1, "data", 300), (1, "fsdp", 300), (2, "fsdp", FEW)], ids=str
)
def test_a_transformer_on_eight_devices_has_the_losses_of_one(processes, mesh, steps, tmp_path):
    def train(run, processes, devices, mesh, steps):
        arguments = [*OPTIONS, *CONSTANT, f"train.steps={steps}", f"train.eval_interval={FEW}"]
        arguments += ["train.eval_tokens=500", f"train.mesh={mesh}", f"run_dir={run}"]
        for status, _, errors in finish(start(processes, devices, arguments)):
            assert status == 0, errors

    with once("transformer") as (one, first):
        if first:
            train(one, 1, 1, "data", 300)
    eight = tmp_path / "8"
    train(eight, processes, 8 // processes, mesh, steps)
    assert 0 < furthest(losses_of(eight), losses_of(one)[:steps]) < 1e-5
    ours, theirs = ([json.loads(line) for line in lines_of(run).splitlines()] for run in (eight, one))
    evaluated = [
        (row["val_loss"], other["val_loss"]) for row, other in zip(ours, theirs, strict=False) if "val_loss" in row
    ]
    assert len(evaluated) == steps // FEW
    assert all(loss == pytest.approx(expected, rel=1e-5) for loss, expected in evaluated)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_with_one_sentence_and_the_run_goes_on_anywhere(together, alone, tmp_path):
    run = tmp_path / "run"
    arguments = [*RUN, "train.mesh=fsdp", f"run_dir={run}"]
    started = start(2, 4, arguments)
    wait_for_step(run, 10)
    started[0].kill()
    (killed, _, _), (status, _, errors) = finish(started)
    assert killed == -signal.SIGKILL
    assert status != 0
    assert errors.startswith(f"error: {LOST}")
    assert errors.count("\n") == 1
    assert max(each.step for each in read_manifest(run).checkpoints) < STEPS
    for devices in (1, 8):
        shutil.copytree(run, tmp_path / str(devices))

    ours, theirs = (json.loads((each / "result.json").read_text())["losses"]["val"] for each in (together, alone))
    assert ours["tokens"] == theirs["tokens"]
    assert ours["nats_per_token"] == pytest.approx(theirs["nats_per_token"], rel=1e-5)

    # The same command continues it, to the byte.
    assert [status for status, _, _ in finish(start(2, 4, arguments))] == [0, 0]
    assert lines_of(run) == lines_of(together)

    # So does one process, on one device or eight, within rounding.
    for devices in (1, 8):
        other = tmp_path / str(devices)
        ((status, out, errors),) = finish(start(1, devices, [*RUN, "train.mesh=fsdp", f"run_dir={other}"]))
        assert (status, errors) == (0, "")
        assert "continuing from step" in out
        assert furthest(losses_of(other), losses_of(alone)) < 1e-5
    command = [sys.executable, "-m", "babyjax", "evaluate", f"run_dir={run}", "format=json"]
    evaluated = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(evaluated.stdout)["splits"]["val"]["nats_per_token"] < 3


@pytest.mark.slow
def test_two_processes_continue_what_one_began(alone, tmp_path):
    run = tmp_path / "run"
    (one,) = start(1, 1, [*RUN, "checkpoint.interval=1", f"run_dir={run}"], (), ("-c", STOPPING))
    assert finish([one])[0][0] == 128 + signal.SIGTERM
    begun = len(lines_of(run).splitlines())
    assert 0 < begun < STEPS
    first, second = finish(start(2, 4, [*RUN, "train.mesh=fsdp", f"run_dir={run}"]))
    assert (first[0], first[2], second[0], second[2]) == (0, "", 0, "")
    assert f"continuing from step {begun}" in first[1]
    assert furthest(losses_of(run), losses_of(alone)) < 1e-5


@pytest.mark.slow
def test_processes_notice_a_damaged_checkpoint(together, tmp_path):
    run = Path(shutil.copytree(together, tmp_path / "run"))
    for path in (run / "steps" / str(STEPS)).rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    first, second = finish(start(2, 4, [*RUN, "train.mesh=fsdp", f"run_dir={run}"]))
    assert first[0] == 1
    assert re.search(r"error: \S+/steps/30 (was changed|cannot be read)", first[2] + second[2])
    assert [first[2].count("\n"), second[2].count("\n")] == [1, 1]


@pytest.mark.slow
def test_the_first_process_outlives_no_other(tmp_path):
    run = tmp_path / "run"
    started = start(2, 2, [*RUN, "train.steps=5000", f"run_dir={run}"], (), ("-c", IMPATIENT + COMMAND))
    wait_for_step(run, 10)
    started[1].kill()
    (status, _, errors), _ = finish(started)
    assert status != 0
    assert errors.startswith(f"error: {LOST}")
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_cannot_save_ends_and_so_does_the_other(process, tmp_path):
    run = tmp_path / "run"
    broken = f"""
import sys
from babyjax.runs import run

def begin_writing(path, arrays, real=run.begin_writing):
    if path.name == "20":
        raise run.CheckpointError("No space left on device")
    return real(path, arrays)

if "distributed.process={process}" in sys.argv:
    run.begin_writing = begin_writing
"""
    both = finish(start(2, 2, [*RUN, "train.steps=5000", f"run_dir={run}"], (), ("-c", IMPATIENT + broken + COMMAND)))
    for number, (status, _, errors) in enumerate(both):
        assert status != 0
        assert ("No space left on device" if number == process else LOST) in errors
        assert errors.count("\n") == 1
    assert [each.step for each in read_manifest(run).checkpoints] == [10]


@pytest.mark.slow
@pytest.mark.parametrize(("process", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(process, number, tmp_path):
    run = tmp_path / "run"
    started = start(2, 2, [*RUN, "train.steps=5000", f"run_dir={run}"])
    wait_for_step(run, 10)
    started[process].send_signal(number)
    first, second = finish(started)
    assert (first[0], second[0]) == (128 + number, 128 + number)
    assert (first[2], second[2]) == ("", "")
    newest = max(each.step for each in read_manifest(run).checkpoints)
    said = f"stopped   after step {newest:,}; saved\nnext      in every process, with its own distributed.process=: "
    assert said in first[1]
    assert "distributed.process=0" not in first[1]
    assert len(lines_of(run).splitlines()) == newest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            ["train.eval_tokens=500", "train.eval_tokens=50"],
            "the processes have different options, texts or packages; start all with",
        ),
        (["run_dir={run}", "run_dir={run}-other"], "is not one folder for all processes; use a run_dir= that they"),
    ],
)
def test_processes_that_do_not_fit_together_end(own, message, together, tmp_path):
    run = Path(shutil.copytree(together, tmp_path / "run"))
    arguments = [*RUN, "train.mesh=fsdp", f"run_dir={run}"]
    first, second = finish(start(2, 2, arguments, [each.format(run=run) for each in own]))
    assert first[0] == 1
    assert message in first[2]
    assert message in second[2] or LOST in second[2]  # the first may be gone before it speaks
    assert [first[2].count("\n"), second[2].count("\n")] == [1, 1]
    assert lines_of(run) == lines_of(together)


@pytest.mark.slow
def test_every_device_of_every_process_needs_a_part_of_a_batch(tmp_path):
    for status, _, errors in finish(start(2, 2, [*RUN, "train.batch_size=6", f"run_dir={tmp_path / 'run'}"])):
        assert status == 2
        assert errors.startswith("error: 4 devices of 2 processes do not divide a batch of 6")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"[Gloo] Rank 0 is connected\nW1127 a warning\n" + ENDED, ""),
        (b"W1127 a warning\nF1127 Terminating process because " + FATAL + b".\n*** stack trace\n", f"error: {LOST}\n"),
        (b"terminate called after throwing an " + GLOO + b"EnforceNotMet'\n  what():  8 vs 4.", f"error: {LOST}\n"),
        (b"F1127 " + FATAL + b"\nRPC: /xla.coordination.CoordinationService/RegisterTask\n", f"error: {MISSED}\n"),
        (b"[Gloo] Rank 0\nF1127 another failure\nat 0x7f", "F1127 another failure\nat 0x7f"),
        (b"line\n" * (LINES + 50), "line\n" * LINES),
        (b"", ""),
    ],
)
def test_what_libraries_print_is_shown_only_after_a_crash(written, shown):
    command = [sys.executable, "-c", "from babyjax.native_output import read; read()"]
    ran = subprocess.run(command, input=written, capture_output=True, check=True)
    assert (ran.stdout, ran.stderr.decode()) == (b"", shown)


def test_python_prints_as_before_while_libraries_are_held():
    script = """
import os, sys
from babyjax.native_output import hold_native_output
hold_native_output()
os.write(1, b"a library\\n"); os.write(2, b"a library\\n")
print("Python", flush=True); print("error", file=sys.stderr, flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("Python\n", "error\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distributed.process=1"], "belong together; give all three"),
        (["distributed.coordinator=here", "distributed.processes=2", "distributed.process=0"], "is not HOST:PORT"),
        (["distributed.coordinator=a:70000", "distributed.processes=2", "distributed.process=0"], "is not HOST:PORT"),
        (["distributed.coordinator=a:1", "distributed.processes=2", "distributed.process=2"], "is not one of"),
        (
            ["distributed.coordinator=a:1", "distributed.processes=2", "distributed.process=0", "distributed=auto"],
            "itself",
        ),
        (["distributed=auto", "model=bigram"], "trainer=counting runs in one process"),
        (["distributed=auto", "train.seeds=2"], "train.seeds=2 runs in one process"),
    ],
)
def test_options_of_processes_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(arguments)


def test_a_cluster_that_jax_does_not_know_is_told_in_one_sentence():
    ((status, out, errors),) = finish(start(1, 1, ["distributed=auto"]))
    assert (status, out) == (2, "")
    assert errors.startswith("error: distributed=auto knows no cluster here")
    assert errors.count("\n") == 1


def test_a_sweep_stays_in_one_process():
    with pytest.raises(ConfigError, match="a sweep runs in one process"):
        sweep(["optimizer.learning_rate=1e-3,1e-2", "distributed=auto"])


def test_a_run_does_not_know_its_processes():
    together = load_config(["distributed.coordinator=a:1", "distributed.processes=2", "distributed.process=1"])
    assert together.is_distributed
    assert config_to_dict(together) == config_to_dict(load_config([]))


def test_one_process_agrees_with_itself():
    assert (processes.broadcast(7), processes.max_over_processes(3), processes.same_everywhere("x")) == (7, 3, True)
    assert processes.is_main_process()
    assert not processes.is_multiprocess()


def test_the_report_is_that_of_its_record():
    record = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    assert text(record) == (HERE / "results.md").read_text(encoding="utf-8")
