"""Training a run from its start to its end: what `train` does once, and `train.seeds` and `sweep` do many times."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from babyjax.cli import command_line, complain, stop_signals
from babyjax.config import BabyGPTConfig, Config, NGramConfig
from babyjax.errors import DivergenceError, RunError
from babyjax.evaluation.comparison import Interval
from babyjax.files import finite_json, replace_file
from babyjax.models.grow import grow
from babyjax.options import config_to_dict
from babyjax.runs.directory import load_run, run_folder
from babyjax.runs.manifest import NAME
from babyjax.runs.run import RESULT, Run
from babyjax.sinks import Log, Sink, Sinks, open_sinks
from babyjax.sinks.console import Screen
from babyjax.task import Task, make_trainer
from babyjax.training.events import Event, State, evaluated

SEEDS = "seeds.json"


class Trained(NamedTuple):
    """How training ended: by `event`, None if the run was trained already, or by the signal `received`, 0 if none."""

    state: State
    event: Event | None
    received: int


def train_run(
    run: Run,
    config: Config,
    task: Task,
    log: Log | None,
    screen: Screen,
    console: Callable[[int, int | None], Sink],
) -> Trained:
    """Train an open run to its end or to a signal. `console` makes what shows it from its step and its last step.

    Raises: DivergenceError if the loss becomes NaN or infinite, RunError if the directory is not writable.
    """
    with screen.status("compiling"):
        trainer = make_trainer(config, task)
        state = run.restore(trainer.init())
        events = trainer.run(state, (config.train.eval_interval, config.checkpoint.interval))
        event = next(events, None)
    if event is None:
        return Trained(state, None, 0)
    run.begin()
    show = console(run.step, trainer.total_steps)
    with open_sinks(show, log, run.folder, run.step, config_to_dict(config)) as sinks:
        event, received = _record(chain([event], events), config, task, run, sinks)
    for failure in sinks.failures:
        complain(f"warning: {failure}")
    return Trained(event.state, event, received)


def _record(events: Iterator[Event], config: Config, task: Task, run: Run, sinks: Sinks) -> tuple[Event, int]:
    """Evaluate, save and show events until the last or a signal. Returns the event, and the signal's number or 0."""
    event, interval = None, config.train.eval_interval
    with stop_signals() as received:
        try:
            for event in evaluated(events, task.evaluate, interval):
                run.record(event, evaluated=event.step % interval == 0)
                sinks(event)
                if received:
                    break
            assert event is not None, "a trainer yields at least one event"
            run.save(event)
        except DivergenceError as error:
            run.wait()
            raise DivergenceError(f"{error}; {run.kept()}") from error
        run.wait()
    return event, received[0] if received else 0


class SeedSink:
    """A live bar while the run of a seed trains."""

    def __init__(self, screen: Screen, name: str, step: int, total: int | None):
        self._screen, self._name, self._update = screen, name, screen.bar(step, total)

    def __call__(self, event: Event) -> None:
        self._update(completed=event.step, description=f"{self._name}  {event.note}")

    def close(self) -> None:
        self._screen.close()


class Losses(NamedTuple):
    """The final losses of a run in nats per token, as its result.json has them."""

    train: float
    val: float


def read_losses(folder: Path) -> Losses:
    """Read the final losses of a finished run. Raises: RunError if it is not finished, or cannot be read."""
    path = folder / RESULT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["losses"]
        return Losses(*(float(found[name]["nats_per_token"]) for name in Losses._fields))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"cannot read the final losses in {path} ({type(error).__name__})") from None


def config_of_seed(config: Config, seed: int) -> Config:
    """Return the config of the run of one seed, which can be trained and resumed alone."""
    train = config.train.replace(seed=seed, seeds=1)
    return config.replace(train=train, run_dir=str(Path(config.run_dir) / f"seed-{seed}"))


def train_one(config: Config, task: Task, log: Log | None, screen: Screen, name: str) -> tuple[Losses, str, int]:
    """Train one of many runs. Returns its losses, how it went, and the number of a signal that ended it, or 0."""
    start = time.perf_counter()
    with Run.open(config, task.corpus, task.tokenizer, task.parts) as run:
        event, received = train_run(
            run, config, task, log, screen, lambda step, total: SeedSink(screen, name, step, total)
        )[1:]
    if event is not None and not event.last:
        return Losses(math.nan, math.nan), f"stopped after step {event.step:,}", received
    done = "trained before" if event is None else f"{time.perf_counter() - start:.1f} s"
    return read_losses(run.folder), done, received


def train_seeds(config: Config, task: Task, log: Log | None, screen: Screen) -> tuple[list[Losses], int]:
    """Train a run for each of `train.seeds` seeds, in folders of `run_dir`, with one compilation and one corpus.

    Returns the losses by seed and the number of the signal that ended training, or 0. Seeds that are trained already
    are read. Raises: RunError if `run_dir` holds a run of its own, and as `train_run` does.
    """
    folder = run_folder(config.run_dir)
    if (folder / NAME).exists():
        raise RunError(f"{folder} holds a run of one seed; use another run_dir= for train.seeds={config.train.seeds}")
    seeds = range(config.train.seed, config.train.seed + config.train.seeds)
    screen.say("\n    seed    train      val  above entropy")
    found = []
    for index, seed in enumerate(seeds, 1):
        name = f"seed {seed}, {index} of {len(seeds)}"
        losses, done, received = train_one(config_of_seed(config, seed), task, log, screen, name)
        if received:
            screen.say(f"{seed:8}  {done}")
            return found, received
        found.append(losses)
        screen.say(f"{seed:8} {losses.train:8.4f} {losses.val:8.4f} {losses.train - task.entropy:14.4f}  {done}")
    write_summary(folder, list(seeds), found)
    return found, 0


def say_seeds(config: Config, task: Task, losses: Sequence[Losses], screen: Screen) -> None:
    """Say how the runs of several seeds turned out and where they are."""
    train, val = (interval_text([getattr(loss, name) for loss in losses]) for name in Losses._fields)
    screen.say(f"\nmean      train {train}, val {val} nats/token (95 % over {len(losses)} seeds, on this text)")
    if (spread := Interval.of([loss.val for loss in losses]).deviation) is not None:
        screen.say(f"          standard deviation of val between seeds {spread:.4f}")
    say_ngram(config, task, screen)
    if task.sampled:
        screen.say(f"scored    {config.train.eval_tokens:,} tokens or less of each split")
    screen.say(f"saved to  {config.run_dir}, a run per seed")
    screen.say(f"next      {command_line('compare', config.run_dir, 'ANOTHER_RUN')}")


def say_ngram(config: Config, task: Task, screen: Screen) -> None:
    """Say what counting reaches on the same text, unless the model itself counts n-grams."""
    if not isinstance(config.model, NGramConfig):
        with screen.status("counting n-grams to compare with"):
            order, val = task.ngram.order, task.ngram.val
        screen.say(f"counted   a {order}-gram has val {val:.4f} (its order chosen on held-out training text)")


def grown(config: Config, task: Task, screen: Screen) -> Task:
    """Return the task of growing the run `train.grow_from`, if there is one.

    Raises: RunError if that has another vocabulary.
    """
    if not config.train.grow_from:
        return task
    smaller = load_run(config.train.grow_from)
    if smaller.tokenizer != task.tokenizer:
        raise RunError(f"train.grow_from={config.train.grow_from} was trained with another vocabulary")
    assert isinstance(config.model, BabyGPTConfig), "no other model is trained by gradient steps"
    larger = config.model
    screen.say(f"grown from {smaller.config.choices.model} in {config.train.grow_from}, step {smaller.step:,}")
    return replace(task, initialize=lambda key: grow(smaller.model, larger, key))


def introduce(config: Config, task: Task, screen: Screen) -> None:
    """Say what is learned from which text, and what bounds the loss."""
    parameters = f", {task.parameters:,} parameters" if task.parameters else ""
    screen.say(
        f"{config.choices.model} on {task.corpus.name}: {len(task.corpus.text):,} characters, "
        f"vocabulary {task.tokenizer.vocab_size:,}{parameters}"
    )
    screen.say(f"bigram entropy {task.entropy:.4f} nats/token (lower bound for models of one previous token)")
    if task.corpus.entropy_rate is not None:
        screen.say(f"source entropy {task.corpus.entropy_rate:.4f} nats/token (lower bound for any model, long run)")


def write_summary(folder: Path, seeds: Sequence[int], losses: Sequence[Losses]) -> None:
    """Write the losses of seeds, and their mean and 95 % interval, to seeds.json. Raises: RunError."""
    summary = {
        name: {"losses": values, **Interval.of(values)._asdict()}
        for name in Losses._fields
        for values in [[getattr(loss, name) for loss in losses]]
    }
    try:
        content = json.dumps(finite_json({"seeds": list(seeds), **summary}), indent=1, allow_nan=False)
        replace_file(folder / SEEDS, content + "\n")
    except OSError as error:
        raise RunError(f"cannot write in the run directory {folder}: {error.strerror or error}") from None


def interval_text(values: Sequence[float]) -> str:
    """Return "1.6120 +- 0.0072"; the interval is left out if there is one value."""
    interval = Interval.of(values)
    return f"{interval.mean:.4f}" + (f" +- {interval.error:.4f}" if interval.error is not None else "")
