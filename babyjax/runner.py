"""Training runs from their start to their end: the one loop that evaluates, saves, shows and stops."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import NamedTuple

from babyjax.cli import command_line, print_error, stop_signals
from babyjax.config import Config, NGramConfig
from babyjax.data.prepared import PreparedCorpus
from babyjax.errors import DivergenceError, is_out_of_memory
from babyjax.options import config_to_dict
from babyjax.processes import is_main_process, is_multiprocess, max_over_processes
from babyjax.runs.run import Run
from babyjax.sinks import Log, Sink, Sinks, open_sinks
from babyjax.sinks.console import Screen
from babyjax.task import Task
from babyjax.training.events import Event, State, Trainer, with_losses
from babyjax.training.gradient import GradientTrainer


class Trained(NamedTuple):
    """How training ended: by `event`, None if the run was trained already, or by the signal `received`, 0 if none."""

    state: State
    event: Event | None
    received: int


class Job(NamedTuple):
    """An open run, what it learns, and how."""

    run: Run
    config: Config
    task: Task
    trainer: Trainer


Console = Callable[[int, int | None], Sink]


def train_run(job: Job, log: Log | None, screen: Screen, console: Console) -> Trained:
    """Train a run to its end or to a signal. `console` makes what shows it from its step and its last step.

    Raises: DivergenceError if the loss becomes NaN or infinite, RunError if the directory is not writable.
    """
    (trained,) = train_side_by_side([job], log, screen, console)
    return trained


def train_side_by_side(jobs: Sequence[Job], log: Log | None, screen: Screen, console: Console) -> list[Trained]:
    """Train runs that differ only in their seeds and are at one step. The first is shown. Raises: as `train_run`."""
    config = jobs[0].config
    pauses = config.train.eval_interval, config.checkpoint.interval
    with screen.status("compiling"):
        states = [job.run.restore(job.trainer.init()) for job in jobs]
        trainer = jobs[0].trainer
        if len(jobs) == 1:
            rows = ((event,) for event in trainer.run(states[0], pauses))
        else:
            assert isinstance(trainer, GradientTrainer), "no other trainer gains side by side"
            rows = trainer.run_side_by_side(states, [job.config.train.seed for job in jobs], pauses)
        events = next(rows, None)
    if events is None:
        return [Trained(state, None, 0) for state in states]
    del states  # the first event has what they became
    for job in jobs:
        job.run.begin()
    step = jobs[0].run.step
    shows = [console(step, trainer.total_steps), *[None] * (len(jobs) - 1)]
    with ExitStack() as stack:
        sinks = [
            stack.enter_context(
                open_sinks(show, log if is_main_process() else None, job.run.folder, step, config_to_dict(job.config))
            )
            for job, show in zip(jobs, shows, strict=True)
        ]
        events, received = _record(chain([events], rows), jobs, sinks)
    failures = [failure for each in sinks for failure in each.failures]
    failures += [_verification_warning(event, job) for event, job in zip(events, jobs, strict=True) if event.last]
    for failure in dict.fromkeys(filter(None, failures)) if is_main_process() else ():
        print_error(f"warning: {failure}")
    return [Trained(event.state, event, received) for event in events]


def _record(
    rows: Iterator[tuple[Event, ...]], jobs: Sequence[Job], sinks: Sequence[Sinks]
) -> tuple[Sequence[Event], int]:
    """Evaluate, save and show the events of jobs, a row at a time, until the last or a signal.

    Returns the last row, and the signal's number or 0.
    """
    events, signal, interval = (), 0, jobs[0].config.train.eval_interval
    with stop_signals() as received:
        try:
            for row in rows:
                events = [with_losses(event, job.task.evaluate, interval) for event, job in zip(row, jobs, strict=True)]
                events = [_verify(event, job) if event.last else event for event, job in zip(events, jobs, strict=True)]
                for event, job, show in zip(events, jobs, sinks, strict=True):
                    job.run.record(event, evaluated=event.step % interval == 0)
                    show(event)
                if signal := max_over_processes(received[0] if received else 0):
                    break
            assert events, "a trainer yields at least one event"
            for event, job in zip(events, jobs, strict=True):
                job.run.save(event)
        except DivergenceError as error:
            for job in jobs:
                job.run.wait()
            raise DivergenceError(f"{error}; {jobs[0].run.kept()}") from error
        for job in jobs:
            job.run.wait()
    return events, signal or (received[0] if received else 0)


def _verify(event: Event, job: Job) -> Event:
    """Verify the model of the last event. Returns the event with the report, or as it is if memory is exhausted."""
    try:
        return event._replace(verification=job.task.verify(event.state.model))
    except Exception as error:
        if is_multiprocess() or not is_out_of_memory(error):  # other processes would wait for this one
            raise
        return event


def _verification_warning(event: Event, job: Job) -> str:
    """Return the warning about a finished run that failed its verification or was not verified, else nothing."""
    run_dir, verification = job.config.run_dir, event.verification
    how = command_line("evaluate", f"run_dir={run_dir}", "verify=true")
    if verification is None:
        return f"{run_dir} is not verified: out of memory; try {how}"
    if verification.passed:
        return ""
    failed, tokens = ", ".join(verification.failed), verification.loss.tokens
    return f"{failed} failed when {run_dir} was verified on {tokens:,} validation tokens; {how} says more"


def introduce(config: Config, task: Task, screen: Screen) -> None:
    """Say what is learned from which text, and what bounds the loss."""
    parameters = f", {task.parameters:,} parameters" if task.parameters else ""
    screen.say(
        f"{config.choices.model} on {task.corpus.name}: {task.corpus.characters:,} characters, "
        f"vocabulary {task.tokenizer.vocab_size:,}{parameters}"
    )
    if isinstance(task.corpus, PreparedCorpus):
        screen.say(f"{len(task.split.train):,} training tokens of {task.corpus.folder}")
    if config.train.grow_from:
        screen.say(f"grown from {task.origin or config.train.grow_from}")
    screen.say(f"bigram entropy {task.entropy:.4f} nats/token (lower bound for models of one previous token)")
    if task.corpus.entropy_rate is not None:
        screen.say(f"source entropy {task.corpus.entropy_rate:.4f} nats/token (lower bound for any model, long run)")


def say_ngram(config: Config, task: Task, screen: Screen) -> None:
    """Say what counting reaches on the same text, unless the model itself counts n-grams."""
    if not isinstance(config.model, NGramConfig) and is_main_process():
        with screen.status("counting n-grams to compare with"):
            order, val, counted = task.ngram.order, task.ngram.val, task.ngram.counted
        of = "" if counted == len(task.split.train) else f" of {counted:,} training tokens"
        screen.say(f"counted   a {order}-gram{of} has val {val:.4f} (its order chosen on held-out training text)")
