import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (the tensorboard extra)")
from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.record_writer import masked_crc32c
from test_sinks import MODEL, QUICK

from babyjax import Event
from babyjax.errors import BabyjaxError
from babyjax.evaluation.losses import Nats
from babyjax.sinks.tensorboard import TensorBoardSink
from babyjax.training.events import State


def records_of(path):
    """The records of an event file, their checksums checked."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("I", data[12 + length : 16 + length])[0] == masked_crc32c(body)
        yield Record.FromString(body)
        data = data[16 + length :]


def shown(folder):
    """What TensorBoard shows: {name: {step: value}}. A session that starts hides the steps from its own on."""
    scalars = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        first, *records = records_of(path)
        assert first.file_version == "brain.Event:2"
        for record in records:
            assert record.wall_time > 0
            if record.session_log.status == SessionLog.START:
                for values in scalars.values():
                    for step in [step for step in values if step >= record.step]:
                        del values[step]
            for value in record.summary.value:
                scalars.setdefault(value.tag, {})[record.step] = value.simple_value
    return scalars


def test_scalars_are_those_of_the_events(tmp_path):
    sink = TensorBoardSink(tmp_path, 0, {})
    state = State(0, MODEL, ())
    losses = {"train": Nats(6.0, 3, 3, 0.0), "val": Nats(4.0, 4, 4, 0.0)}
    sink(Event(0, state, np.empty(0), 0.0))
    sink(Event(2, state, np.array([3.0, 2.5]), 0.5, losses=losses))
    assert shown(tmp_path)["loss/step"] == {1: 3.0, 2: 2.5}  # written at once, for a live display
    sink(Event(3, state, np.array([math.nan]), 0.25))
    sink.close()
    assert shown(tmp_path) == {
        "loss/step": {1: 3.0, 2: 2.5},
        "loss/train": {2: 2.0},
        "loss/val": {2: 1.0},
        "speed/steps_per_second": {2: 4.0, 3: 4.0},
    }


def test_a_run_that_continues_hides_what_was_logged_after_its_checkpoint(call, tmp_path):
    """Here the last two steps were logged, and their checkpoint was lost."""
    assert call("train", *QUICK, "log=tensorboard", "checkpoint.interval=18")[0] == 0
    (tmp_path / "here" / "steps" / "20").rename(tmp_path / "lost")
    status, out, err = call("train", *QUICK, "log=tensorboard", "train.steps=19")
    assert (status, err) == (0, "")
    assert "continuing from step 18" in out
    scalars = shown(tmp_path / "here")
    assert list(scalars["loss/step"]) == list(range(1, 20))
    assert list(scalars["loss/val"]) == [5, 10, 15, 19]
    assert len(list((tmp_path / "here" / "tensorboard").iterdir())) == 2


def test_nothing_is_logged_through_a_link(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "victim")
    with pytest.raises(BabyjaxError, match="tensorboard is a symbolic link"):
        TensorBoardSink(tmp_path / "run", 0, {})
    assert not os.listdir(tmp_path / "victim")


FULL = """
import resource, signal, sys
import babyjax.train
from babyjax.sinks import tensorboard

class FullDisk(tensorboard.TensorBoardSink):
    def __call__(self, event):
        limit = 1000 if event.step else resource.RLIM_INFINITY
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            super().__call__(event)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

tensorboard.TensorBoardSink = FullDisk
from babyjax.cli import run_command
run_command(babyjax.train.main, babyjax.train.help_text)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="no RLIMIT_FSIZE")
def test_a_disk_that_fills_up_drops_the_log_and_the_process_ends(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FULL, *QUICK, "log=tensorboard"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "warning: log=tensorboard receives no more events: File too large\n")
    assert (tmp_path / "here" / "steps" / "20").is_dir()
