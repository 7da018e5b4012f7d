"""What a training run shows: a live line on a terminal, plain rows anywhere else."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

HEADER = "    step    train      val  above floor  tokens/s"


def short(number: float) -> str:
    """1234567 as "1.23M": for rates."""
    power, unit = next(
        ((power, unit) for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")) if number >= 10**power), (0, "")
    )
    return f"{number / 10**power:#.3g}".rstrip(".") + unit


def duration(seconds: float) -> str:
    """Seconds as "0.42 s", "3.1 s", "2 min 5 s" or "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 60 else f"{hours} h {minutes % 60} min"


class TrainingDisplay:
    """A table of evaluations with a bar beneath it that is gone at the end. Use as a context manager."""

    def __init__(self, console: Console, step: int, steps: int):
        self._console, self._steps = console, steps
        columns = (
            BarColumn(16),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", completed=step, total=steps)
        self._rate, self._first_step, self._start = 0.0, step, time.monotonic()

    def __enter__(self):
        say(self._console, HEADER)
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Training has reached `step`; `loss` is that of a recent batch."""
        self._rate = tokens_per_second
        self._bar.update(self._task, completed=step, description=f"{loss:.3f} {short(tokens_per_second)} tokens/s")

    def evaluated(self, step: int, train: float, val: float, floor: float) -> None:
        """A row: exact losses in nats per token."""
        row = f"{step:8,} {train:8.4f} {val:8.4f} {train - floor:12.4f} {short(self._rate):>9}"
        left = (self._steps - step) * (time.monotonic() - self._start) / (step - self._first_step)
        say(self._console, row + (f"  {duration(left)} left" if left and not self._console.is_terminal else ""))


class CountsDisplay:
    """A table of the steps that took long or ended a descent, with the newest beneath it. Use as a context manager."""

    def __init__(self, console: Console, floor: float):
        self._console, self._floor, self._said = console, floor, -1.0
        self._status = console.status("compiling")

    def __enter__(self):
        say(self._console, "    step    train      val  above floor")
        self._status.start()
        return self

    def __exit__(self, *_):
        self._status.stop()

    def step(self, step: int, train: float, val: float, what: str, important: bool) -> None:
        """A step was made: exact losses in nats per token of the best network so far, and `what` it brought."""
        row = f"{step:8,} {train:8.4f} {val:8.4f} {train - self._floor:12.4f}  {what}"
        self._status.update(row.strip())
        now = time.monotonic()
        if important or now - self._said > 1:
            say(self._console, row)
            self._said = now


def say(console: Console, line: str) -> None:
    """Print a line as it is: rich is to colour nothing, interpret nothing, break nothing."""
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
