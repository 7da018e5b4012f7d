"""Where the events of a run go: the console, TensorBoard, wandb."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from babyjax.errors import BabyjaxError, ConfigError
from babyjax.training.events import Event


@runtime_checkable
class Sink(Protocol):
    """Receives events, and is closed after the last. It knows nothing of training."""

    def __call__(self, event: Event) -> None: ...
    def close(self) -> None: ...


# A log is opened for a run in a folder that continues from a step, and has a config.
Log = Callable[[Path, int, dict[str, Any]], Sink]
LOGS = {"tensorboard": "TensorBoardSink", "wandb": "WandbSink"}


def find_log(log: str) -> Log | None:
    """Return the class of the sink that `log=` names, None for "none". Raises: ConfigError if a package is missing."""
    if log == "none":
        return None
    try:
        return getattr(importlib.import_module(f"babyjax.sinks.{log}"), LOGS[log])
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ConfigError(f"log={log} needs the package {package}: pip install 'babyjax[{log}]'") from None


class Sinks:
    """The sinks of a run. One that fails is dropped and training goes on; `failures` says what happened."""

    def __init__(self, sinks: dict[str, Sink]):
        self._sinks, self.failures = sinks, []

    def __call__(self, event: Event) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda sink=sink: sink(event))

    def close(self) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, sink.close)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a package that logs has its own kinds
            del self._sinks[name]
            self.failures.append(f"{name} receives no more events: {_reason(error)}")


@contextmanager
def open_sinks(
    console: Sink | None, log: Log | None, folder: Path, step: int, config: dict[str, Any]
) -> Iterator[Sinks]:
    """The console and the log, if any, of a run in `folder` that continues from `step`.

    Raises: BabyjaxError if the log cannot be opened.
    """
    sinks = {} if console is None else {"the console": console}
    if log is not None:
        name = f"log={config['log']}"
        try:
            sinks[name] = log(folder, step, config)
        except Exception as error:
            raise BabyjaxError(f"cannot open {name}: {_reason(error)}") from error
    opened = Sinks(sinks)
    try:
        yield opened
    finally:
        opened.close()


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join((text or type(error).__name__).split())
