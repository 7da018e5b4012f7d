import errno
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from babyjax import ConsoleSink, Event, Screen
from babyjax.evaluation.losses import Nats
from babyjax.training.events import State

MODEL: Any = None


def event_of(step, val=None, **fields):
    losses = None if val is None else {name: Nats(8 * val, 8, 8, 1.0) for name in ("train", "val")}
    return Event(step, State(step, MODEL, ()), np.ones(min(step, 1)), 0.1, losses=losses, **fields)


@pytest.fixture
def shown(capsys):
    def show(*events, total=100):
        sink = ConsoleSink(Screen(), entropy=1.5, step=0, total=total)
        for event in events:
            sink(event)
        sink.close()
        return capsys.readouterr().out.splitlines()

    return show


def test_there_is_a_row_for_every_evaluation(shown):
    lines = shown(
        event_of(0, note="compiled [here]"),
        event_of(10, milestone=True),
        event_of(20, 2.0, note="fast", milestone=True),
        event_of(100, 1.75, milestone=True, last=True),
    )
    assert lines[:3] == ["compiled [here]", "", "    step    train      val  above entropy"]
    assert lines[3].startswith("      20   2.0000   2.0000         0.5000  fast, ")
    assert lines[3].endswith(" left")
    assert lines[4] == "     100   1.7500   1.7500         0.2500  "


def test_what_is_left_does_not_count_the_compilation_of_the_first_evaluation(shown, monkeypatch):
    """Ten steps take 0.1 s; the first evaluation takes 60 s, any other 2 s."""
    clock = iter([60.0, 62.1, 64.2])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    lines = shown(event_of(0), *(event_of(step, 2.0, milestone=True) for step in (10, 20, 30)))
    assert [line.rpartition(", ")[2] for line in lines[2:]] == ["0.90 s left", "16.8 s left", "14.7 s left"]


def test_steps_without_a_milestone_share_a_row_a_second(shown):
    """The first is shown, and the last."""
    events = [event_of(step, 2.0, last=step == 50) for step in range(1, 51)]
    assert [line.split()[0] for line in shown(event_of(0), *events, total=None)[2:]] == ["1", "50"]


def test_a_console_that_fails_is_given_up_and_training_goes_on(monkeypatch):
    class Full:
        encoding, closed = "utf-8", False

        def __getattr__(self, name):
            def fail(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            return (lambda: False) if name == "isatty" else fail

        def close(self):
            self.closed = True

    monkeypatch.setattr(sys, "stdout", Full())
    screen = Screen()
    sink = ConsoleSink(screen, entropy=1.5, step=0, total=None)
    for step in range(3):
        sink(event_of(step, 2.0))
    assert screen.failure == "no space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_is_left_of_a_failed_console_does_not_fail_again_at_exit(monkeypatch):
    with open("/dev/full", "w") as full:  # closing flushes what is left
        monkeypatch.setattr(sys, "stdout", full)
        screen = Screen()
        for _ in range(3):
            screen.say("line")
        assert screen.failure == "no space left on device"
        full.write("more")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_terminal_that_goes_away_while_a_bar_is_drawn_is_survived(monkeypatch):
    """A thread draws the bar, whose exceptions would be printed."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        screen = Screen()
        assert screen.is_terminal
        with screen.status("compiling") as update:
            update("compiling more", 0.5)
        assert b"compiling more: 50%" in os.read(master, 1 << 16)
        sink = ConsoleSink(screen, entropy=1.5, step=0, total=100)
        sink(event_of(0))
        sink(event_of(10, 2.0, milestone=True))
        os.close(master)
        time.sleep(0.3)
        sink(event_of(20, 2.0, milestone=True))
        with screen.status("evaluating"):
            pass
        sink.close()
    assert screen.failure == "input/output error"


@pytest.mark.parametrize("closed", [False, True])
def test_a_closed_console_is_no_obstacle(monkeypatch, closed):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream if closed else None)
    screen = Screen()
    ConsoleSink(screen, entropy=1.5, step=0, total=None)(event_of(0))
    assert screen.failure == "it is closed"


def test_a_console_that_is_closed_later_is_no_obstacle_either(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    screen = Screen()
    screen.say("shown")
    assert stream.getvalue() == "shown\n"
    stream.close()
    screen.say("lost")
    assert screen.failure == "it is closed"
