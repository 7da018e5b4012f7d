import errno
import sys
from typing import Any

import numpy as np
import pytest

from babyjax import Event
from babyjax.errors import BabyjaxError, ConfigError
from babyjax.sinks import find_log, open_sinks
from babyjax.training.events import State

MODEL: Any = None  # no sink looks at it
EVENT = Event(1, State(1, MODEL, ()), np.ones(1), 0.1)
OPTIONS = (
    "data=synthetic",
    "data.length=2000",
    "data.states=5",
    "model.n_embd=4",
    "train.batch_size=4",
    "run_dir=here",
)
QUICK = (*OPTIONS, "train.steps=20", "train.eval_interval=5")


class Recorder:
    """A sink that keeps events, and fails at the one numbered `fail_at` or when it is closed."""

    def __init__(self, fail_at: int = 0, error: Exception | None = None, close_error: Exception | None = None):
        self.events, self.closed = [], False
        self.fail_at, self.error, self.close_error = fail_at, error, close_error

    def __call__(self, event):
        self.events.append(event)
        if self.error and len(self.events) == self.fail_at:
            raise self.error

    def close(self):
        self.closed = True
        if self.close_error:
            raise self.close_error


def disk_full():
    return OSError(errno.ENOSPC, "No space left on device")


def test_no_log_is_found_for_none():
    assert find_log("none") is None


@pytest.mark.parametrize(("log", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_told_before_training(call, tmp_path, monkeypatch, log, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"babyjax.sinks.{log}", raising=False)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=rf"log={log} needs the package {package}: pip install 'babyjax\[{log}\]'"):
        find_log(log)
    status, out, err = call("train", *QUICK, f"log={log}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("error", [disk_full(), ValueError("a package\n has kinds of its own")])
def test_a_sink_that_fails_is_dropped_and_the_others_go_on(tmp_path, error):
    console, log = Recorder(), Recorder(2, error)
    with open_sinks(console, lambda *_: log, tmp_path, 0, {"log": "test"}) as sinks:
        for _ in range(4):
            sinks(EVENT)
    assert (len(console.events), len(log.events)) == (4, 2)
    assert console.closed
    (failure,) = sinks.failures
    assert failure.startswith("log=test receives no more events: ")
    assert "\n" not in failure


def test_a_sink_that_fails_when_closed_is_told_and_the_others_are_closed(tmp_path):
    console, log = Recorder(close_error=disk_full()), Recorder()
    with open_sinks(console, lambda *_: log, tmp_path, 0, {"log": "test"}) as sinks:
        sinks(EVENT)
    assert log.closed
    assert sinks.failures == ["the console receives no more events: No space left on device"]


def test_sinks_are_closed_when_training_fails(tmp_path):
    console, log = Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt), open_sinks(console, lambda *_: log, tmp_path, 0, {"log": "test"}):
        raise KeyboardInterrupt
    assert console.closed
    assert log.closed


def test_a_log_that_cannot_be_opened_is_told(tmp_path):
    def refuse(folder, step, config):
        raise RuntimeError("no key,\nno log")

    opening = open_sinks(Recorder(), refuse, tmp_path, 0, {"log": "test"})
    with pytest.raises(BabyjaxError, match="cannot open log=test: no key, no log"), opening:
        pass


def test_training_goes_on_without_a_log_that_fails_and_says_so(call, tmp_path, monkeypatch):
    import babyjax.sinks.tensorboard

    monkeypatch.setattr(babyjax.sinks.tensorboard, "TensorBoardSink", lambda *_: Recorder(2, disk_full()))
    status, out, err = call("train", *QUICK, "log=tensorboard")
    assert status == 0
    assert err == "warning: log=tensorboard receives no more events: No space left on device\n"
    assert "saved to  here" in out
    assert len((tmp_path / "here" / "metrics.jsonl").read_text().splitlines()) == 20
    assert (tmp_path / "here" / "steps" / "20").is_dir()
