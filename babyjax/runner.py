"""Training a run from its start to its end: what `train` does once, and `train.seeds` and `sweep` do many times."""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from babyjax.cli import command_line, complain, stop_signals
from babyjax.config import BabyGPTConfig, Config, NGramConfig
from babyjax.errors import DivergenceError, RunError
from babyjax.evaluation.comparison import Interval
from babyjax.files import finite_json, is_temporary, replace_file
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


class BarSink:
    """A live bar while one of many runs trains."""

    def __init__(self, screen: Screen, name: str, step: int, total: int | None):
        self._screen, self._name, self._range = screen, name, (step, total)
        self._update: Callable[..., None] | None = None

    def __call__(self, event: Event) -> None:
        self._update = self._update or self._screen.bar(*self._range)
        self._update(completed=event.step, description=f"{self._name}  {event.note}")

    def close(self) -> None:
        self._screen.close()


class Losses(NamedTuple):
    """The final losses of a run in nats per token, as its result.json has them, and what they are losses of."""

    train: float
    val: float
    step: int
    tokens: int  # of the validation split that were scored


def read_losses(folder: Path) -> Losses:
    """Read the final losses of a finished run. Raises: RunError if it is not finished, or cannot be read."""
    path = folder / RESULT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        train, val = (found["losses"][name]["nats_per_token"] for name in ("train", "val"))
        train, val = (math.inf if loss is None else float(loss) for loss in (train, val))
        return Losses(train, val, int(found["step"]), int(found["losses"]["val"]["tokens"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"cannot read the final losses in {path} ({type(error).__name__}); finish that run with the command it was "
            "started with, or use overwrite=true or another run_dir="
        ) from None


def config_of_seed(config: Config, seed: int) -> Config:
    """Return the config of the run of one seed, which can be trained and resumed alone."""
    train = config.train.replace(seed=seed, seeds=1)
    return config.replace(train=train, run_dir=str(Path(config.run_dir) / f"seed-{seed}"))


def folder_of_runs(path: str | Path, names: str) -> Path:
    """Return the folder of many runs, in which everything has a name that the pattern `names` matches.

    Raises: RunError if it holds anything else.
    """
    folder = run_folder(path)
    try:
        other = sorted(
            item.name
            for item in (folder.iterdir() if folder.exists() else ())
            if not re.fullmatch(names, item.name) and not is_temporary(item)
        )
    except OSError as error:
        raise RunError(f"cannot read the folder {folder}: {error.strerror}") from None
    if NAME in other:
        raise RunError(f"{path} holds a run; many runs need a folder of their own: use another run_dir=")
    if other:
        raise RunError(f"{path} holds other files ({other[0]}); use another run_dir=")
    return folder


def start_over(configs: Sequence[Config], task: Task) -> None:
    """Empty the runs that are to be overwritten, so that none of them is taken for one that was trained since."""
    for config in configs:
        if config.overwrite and run_folder(config.run_dir).exists():
            with Run.open(config, task.corpus, task.tokenizer, task.parts) as run:
                run.begin()


def train_one(config: Config, task: Task, log: Log | None, screen: Screen, name: str) -> tuple[Losses | None, str, int]:
    """Train one of many runs, or read its losses if it is trained.

    Returns its losses, None if a signal ended it, how it went, and the number of a signal that came, or 0.
    """
    start = time.perf_counter()
    with Run.open(config, task.corpus, task.tokenizer, task.parts) as run:
        if not run.step:
            task = grown(config, task)
        _, event, received = train_run(
            run, config, task, log, screen, lambda step, total: BarSink(screen, name, step, total)
        )
    if event is not None and not event.last:
        return None, f"stopped after step {event.step:,}", received
    losses = read_losses(run.folder)
    if event is not None:
        return losses, f"{time.perf_counter() - start:.1f} s", received
    if config.choices.trainer == "sgd" and losses.step != config.train.steps:
        raise RunError(
            f"{config.run_dir} is trained for {losses.step:,} steps, not {config.train.steps:,}; use another run_dir=, "
            "or overwrite=true to replace it"
        )
    return losses, "trained before", received


def train_seeds(config: Config, task: Task, log: Log | None, screen: Screen) -> tuple[list[Losses], int]:
    """Train a run for each of `train.seeds` seeds, in folders of `run_dir`, with one compilation and one corpus.

    Returns the losses by seed and the number of the signal that ended training, or 0. Seeds that are trained already
    are read. Raises: RunError if `run_dir` holds anything else, and as `train_run` does.
    """
    folder = folder_of_runs(config.run_dir, rf"seed-\d+|{re.escape(SEEDS)}")
    seeds = range(config.train.seed, config.train.seed + config.train.seeds)
    configs = [config_of_seed(config, seed) for seed in seeds]
    start_over(configs, task)
    screen.say("\n    seed    train      val  above entropy")
    found: list[Losses] = []
    for index, (seed, each) in enumerate(zip(seeds, configs, strict=True), 1):
        losses, done, received = train_one(each, task, log, screen, f"seed {seed}, {index} of {len(seeds)}")
        if losses is None:
            screen.say(f"{seed:8}  {done}")
            return found, received
        screen.say(f"{seed:8} {losses.train:8.4f} {losses.val:8.4f} {losses.train - task.entropy:14.4f}  {done}")
        if found and losses.tokens != found[0].tokens:
            raise RunError(
                f"{each.run_dir} was evaluated on {losses.tokens:,} tokens, others on {found[0].tokens:,}; train all "
                "seeds with the same train.eval_tokens="
            )
        found.append(losses)
        if received and index < len(seeds):
            return found, received
    _write_summary(folder, list(seeds), found)
    return found, 0


def say_seeds(config: Config, task: Task, losses: Sequence[Losses], screen: Screen) -> None:
    """Say how the runs of several seeds turned out and where they are."""
    train, val = (Interval.of([getattr(loss, name) for loss in losses]) for name in ("train", "val"))
    if train.error is not None and val.error is not None:
        said = f"train {train.mean:.4f} +- {train.error:.4f}, val {val.mean:.4f} +- {val.error:.4f} nats/token"
        screen.say(f"\nmean      {said} (95 % over {len(losses)} seeds, on this text)")
        screen.say(f"          standard deviation of val between seeds {val.deviation:.4f}")
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


def grown(config: Config, task: Task) -> Task:
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
    return replace(
        task,
        initialize=lambda key: grow(smaller.model, larger, key),
        origin=f"{smaller.config.choices.model} in {config.train.grow_from}, step {smaller.step:,}",
    )


def introduce(config: Config, task: Task, screen: Screen) -> None:
    """Say what is learned from which text, and what bounds the loss."""
    parameters = f", {task.parameters:,} parameters" if task.parameters else ""
    screen.say(
        f"{config.choices.model} on {task.corpus.name}: {len(task.corpus.text):,} characters, "
        f"vocabulary {task.tokenizer.vocab_size:,}{parameters}"
    )
    if config.train.grow_from:
        screen.say(f"grown from {task.origin or config.train.grow_from}")
    screen.say(f"bigram entropy {task.entropy:.4f} nats/token (lower bound for models of one previous token)")
    if task.corpus.entropy_rate is not None:
        screen.say(f"source entropy {task.corpus.entropy_rate:.4f} nats/token (lower bound for any model, long run)")


def _write_summary(folder: Path, seeds: Sequence[int], losses: Sequence[Losses]) -> None:
    values = {name: [getattr(loss, name) for loss in losses] for name in ("train", "val")}
    write_json(
        folder / SEEDS, {"seeds": seeds} | {k: {"losses": v} | Interval.of(v)._asdict() for k, v in values.items()}
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a summary of runs beside them. Raises: RunError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(finite_json(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
