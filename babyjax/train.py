"""`python -m babyjax.train model=babygpt`: train a model and keep the run in a directory."""

import signal
import threading
from contextlib import contextmanager
from textwrap import fill

from rich.console import Console

from babyjax.config import choices_of, load_config, options_of
from babyjax.door import describe_options, prepare_jax, run_door
from babyjax.errors import ConfigError, DivergenceError
from babyjax.schema import GROUPS, BigramConfig, CountsConfig
from babyjax.trainers.counting import train_by_counting
from babyjax.trainers.counts import train_by_solving
from babyjax.trainers.gradient import train_by_gradient
from babyjax.trainers.job import Job


def help_text(argv: list[str]) -> str:
    """The help, with the options of the groups chosen in `argv`."""
    config = load_config(argv)
    groups = []
    for group in GROUPS:
        here = getattr(config, group).name
        choices = ", ".join(name + "*" * (name == here) for name in choices_of(group))
        first, rest = f"  {group:9}  ", " " * 13
        groups.append(fill(choices, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))
    return "\n".join(
        (
            "usage: python -m babyjax.train [group=choice ...] [key=value ...]",
            "",
            "Train a language model and keep the run in a directory.",
            "The same command on a directory that holds the run continues it.",
            "",
            "groups, and what they can be (* here)",
            *groups,
            "",
            "options, with the values they have here",
            describe_options(options_of(config).items()),
            "",
            "for example",
            "  python -m babyjax.train model=babygpt",
            "  python -m babyjax.train model=babygpt trainer=counts",
            "  python -m babyjax.train model=gpt-tiny data.path=my.txt",
            "  python -m babyjax.train model=bigram data.path=my.txt run_dir=checkpoints/mine",
        )
    )


@contextmanager
def stop_signals():
    """A list that receives SIGINT or SIGTERM when it comes; a second one interrupts at once."""
    received: list[int] = []

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: list[str]) -> int:
    config = load_config(argv)
    console = Console()
    with console.status("starting JAX, reading the corpus"):
        prepare_jax()
        job = Job(config, console)
    with job.run.locked():
        first_step = job.reached()
        by_counts = isinstance(config.trainer, CountsConfig)
        if config.train.grow_from and (by_counts or isinstance(config.model, BigramConfig)):
            raise ConfigError("train.grow_from= is for trainer=sgd and a network: counting has no start")
        if isinstance(config.model, BigramConfig):
            train_by_counting(job, first_step)
            return 0
        with stop_signals() as stopped:
            try:
                (train_by_solving if by_counts else train_by_gradient)(job, first_step, stopped, argv)
            except DivergenceError as error:
                kept = job.run.checkpoints.steps()
                where = f"step {kept[-1]:,} is kept in {config.run_dir}" if kept else "no step was saved before"
                raise DivergenceError(f"{error}; {where}") from error
            return 128 + stopped[0] if stopped else 0


if __name__ == "__main__":
    run_door(main, help_text)
