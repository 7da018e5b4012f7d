"""What a trainer yields. Trainers know no disk, no console and no signals; whoever iterates over the events does."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from babyjax.evaluation.losses import Nats
from babyjax.evaluation.verify import Verification
from babyjax.models.base import LanguageModel


class State(NamedTuple):
    """Complete training state after `step` updates. NumPy leaves stay on the host, in their own precision."""

    step: Any
    model: LanguageModel
    rest: Any  # of the optimizer, or the position of a fit


class Event(NamedTuple):
    """Progress of a run. The first event of a trainer completes no step: it says that compilation is done."""

    step: int
    state: State  # valid until the next event is asked for
    train_losses: Float[np.ndarray, " K"]  # nats per token, of the K steps since the last event
    seconds: float
    last: bool = False
    details: dict[str, Any] = {}  # noqa: RUF012  # more columns for the row of this step
    note: str = ""  # one line on the progress, for a person
    milestone: bool = False  # worth a line however fast the steps are
    summary: tuple[str, ...] = ()  # on the last event: what a person should know of the whole run
    losses: dict[str, Nats] | None = None  # by split; set by `evaluated` if the trainer does not
    verification: Verification | None = None  # of the last event, set by the runner


@runtime_checkable
class Trainer(Protocol):
    """A way of training. A run continues from any state it yielded, exactly as if it had never stopped."""

    @property
    def total_steps(self) -> int | None:
        """The step that training ends with, None if not known before."""
        ...

    def init(self) -> State:
        """Return the state before the first step, also the template for restoring one."""
        ...

    def run(self, state: State, pauses: tuple[int, ...] = ()) -> Iterator[Event]:
        """Train from `state`, which is consumed, to the end; pause at multiples of `pauses`.

        Yields nothing if `state` is the end. Raises: DivergenceError if the loss is NaN or infinite.
        """
        ...


Evaluate = Callable[[LanguageModel], dict[str, Nats]]


def with_losses(event: Event, evaluate: Evaluate, interval: int) -> Event:
    """Give losses to an event at a multiple of `interval` or to the last one, and to no other."""
    due = len(event.train_losses) and (event.last or event.step % interval == 0)
    return event._replace(losses=(event.losses or evaluate(event.state.model)) if due else None)


def evaluated(events: Iterator[Event], evaluate: Evaluate, interval: int) -> Iterator[Event]:
    """Give losses to the events at multiples of `interval` and to the last one, and to no other."""
    return (with_losses(event, evaluate, interval) for event in events)
