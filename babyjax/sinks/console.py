"""The console: what a run shows. A live bar on a terminal, plain lines anywhere else.

Losing the console (a closed pipe, a full disk) never stops training: nothing more is shown, and `failure` says why.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from babyjax.files import discard
from babyjax.text import duration
from babyjax.training.events import Event

HEADER = "    step    train      val  above entropy"
CLOSED = "it is closed"


class _Guarded(io.TextIOBase):
    """A stream without its failures: the first one is kept, and nothing more is written."""

    encoding = "utf-8"

    def __init__(self, stream: Any):  # sys.stdout, which can be of many types, or None
        self._stream, self.failure = stream, None if stream else CLOSED

    def isatty(self) -> bool:
        return not self._lost() and self._stream.isatty()

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def _lost(self) -> bool:
        if not self.failure and self._stream.closed:
            self.failure = CLOSED
        return bool(self.failure)

    def _try(self, action: Callable[[], Any]) -> None:
        if self._lost():
            return
        try:
            action()
        except OSError as error:
            self.failure = (error.strerror or str(error)).lower()
            discard(self._stream)


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Never hide it: a command that a signal ends at once could not show it again."""
        return False


class Screen:
    """Prints lines as they are, and a live line below them on a terminal: standard output, or standard error.

    If it is `silent`, nothing is printed.
    """

    def __init__(self, *, stderr: bool = False, silent: bool = False) -> None:
        self._stream = _Guarded(_Nowhere() if silent else sys.stderr if stderr else sys.stdout)
        self._console = _Console(file=cast(TextIO, self._stream))
        self._live: Progress | None = None

    @property
    def failure(self) -> str | None:
        """Why nothing is shown, None if all is well."""
        return self._stream.failure

    @property
    def is_terminal(self) -> bool:
        return self._console.is_terminal

    def say(self, line: str) -> None:
        """Print a line; rich colors, interprets and wraps nothing."""
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextmanager
    def status(self, text: str) -> Iterator[Callable[..., None]]:
        """Show a text on a terminal while the block runs. Yields `update(text, share=None)`, which changes it."""
        if self.is_terminal:
            with self._console.status(text) as status:
                yield lambda text, share=None: status.update(text if share is None else f"{text}: {share:.0%}")
        else:
            yield lambda text, share=None: None

    def bar(self, step: int, total: int | None) -> Callable[..., None]:
        """Start a progress bar on a terminal; returns what updates it."""
        columns: tuple[Any, ...] = (BarColumn(16), MofNCompleteColumn()) if total else ()
        left = (TimeRemainingColumn(compact=True),) if total else ()
        live = Progress(
            *columns,
            TextColumn("{task.description}"),
            *left,
            console=self._console,
            transient=True,
            disable=not self.is_terminal,
        )
        task = live.add_task("", completed=step, total=total)
        live.start()
        self._live = live
        return lambda **change: live.update(task, **change)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None


class ConsoleSink:
    """One row per evaluation: losses in nats per token. Fast steps without a milestone share a row a second."""

    def __init__(self, screen: Screen, entropy: float, step: int, total: int | None):
        self._screen, self._entropy, self._step, self._total = screen, entropy, step, total
        self._shown = float("-inf")  # when the last row was
        self._first: tuple[int, float] | None = None  # the step of the first row, and when it was
        self._trained = 0.0  # seconds of steps
        self._update: Callable[..., None] | None = None

    def __call__(self, event: Event) -> None:
        if self._update is None:
            if event.note:
                self._screen.say(event.note)
            self._screen.say(f"\n{HEADER}")
            self._update = self._screen.bar(self._step, self._total)
            return
        known = np.isfinite(event.train_losses[-1:]).any()  # counting has no loss of a batch
        loss = f"{event.train_losses[-1]:.3f} " if known else ""
        self._update(completed=event.step, description=f"{loss}{event.note}")
        self._trained += event.seconds
        now = time.monotonic()
        if event.losses and (event.milestone or event.last or now - self._shown > 1):
            train, val = event.losses["train"].per_token, event.losses["val"].per_token
            row = f"{event.step:8,} {train:8.4f} {val:8.4f} {train - self._entropy:14.4f}  {event.note}"
            self._screen.say(row + self._remaining(event, now))
            self._shown, self._first = now, self._first or (event.step, now)

    def _remaining(self, event: Event, now: float) -> str:
        """Return the time left. At the first row it counts steps only, because the first evaluation is compiled."""
        if self._total is None or event.last or self._screen.is_terminal:
            return ""
        step, seconds = self._step, self._trained
        if self._first is not None:
            step, seconds = self._first[0], now - self._first[1]
        return f", {duration((self._total - event.step) * seconds / max(event.step - step, 1))} left"

    def close(self) -> None:
        self._screen.close()
