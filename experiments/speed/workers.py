"""Measuring two sides fairly: each has a process of its own, and only one process runs at a time.

A process that waits still disturbs the other: its idle threads look for work for a while. So a worker is stopped
(SIGSTOP) as soon as it has answered, and continues only when it is asked again.

The protocol is a line in, `{"measure": NAME, ...arguments}`, and a line out, `{"seconds": ..., ...details}`. The first
line of a kind also prepares: it loads data, builds the model and compiles, and none of this is part of the seconds.
`python -m experiments.speed.ours` speaks the protocol on a terminal too.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

Details = dict[str, Any]
# Prepares a measurement and returns what is timed. What that returns is added to the answer.
Prepare = Callable[..., Callable[[], Details]]


def serve(measurements: dict[str, Prepare]) -> None:
    """Answer the lines of standard input until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    prepared: dict[str, Callable[[], Details]] = {}
    for line in sys.stdin:
        if line not in prepared:
            arguments = json.loads(line)
            prepared[line] = measurements[arguments.pop("measure")](**arguments)
        start = time.perf_counter()
        details = prepared[line]()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds} | details), file=answers, flush=True)


class Side(NamedTuple):
    """One side of a comparison: the module that measures it, what it measures, and its name in the report."""

    module: str
    measure: str
    arguments: dict[str, Any]
    label: str = "babyjax"
    repeats: int = 1  # the seconds stand for so many times the work that is measured


class Worker:
    """A process of one side. It runs only while it is asked."""

    def __init__(self, side: Side):
        self._line = json.dumps({"measure": side.measure} | side.arguments)
        self._process = subprocess.Popen(
            [sys.executable, "-m", side.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # On a GPU, neither side may take all of its memory.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def ask(self) -> Details:
        """Let it measure once. Raises: RuntimeError if it fails; its traceback is on standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        print(self._line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker failed to measure {self._line}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def take_turns(sides: list[Side], rounds: int) -> list[Details]:
    """Let the sides measure in turn, A B A B ..., after one round to prepare and warm up.

    Returns the details of the last round of each side, with the seconds of every round and their median. If `rounds` is
    0, the first round counts.
    """
    workers: list[Worker] = []
    try:
        answers: list[list[Details]] = [[]]
        for side in sides:
            workers.append(Worker(side))
            answers[0].append(workers[-1].ask())
        answers += [[worker.ask() for worker in workers] for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.close()
    results = []
    for side, turns in zip(sides, zip(*(answers[1:] or answers), strict=True), strict=True):
        seconds = [side.repeats * turn["seconds"] for turn in turns]
        results.append(turns[-1] | {"seconds": seconds, "median": median(seconds)})
    return results
