"""Many runs: one for each seed of `train.seeds`, or for each trial of a sweep."""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from babyjax.cli import command_line
from babyjax.config import Config
from babyjax.errors import DivergenceError, RunError
from babyjax.evaluation.comparison import Interval
from babyjax.files import MANIFEST, finite_json, is_temporary, replace_file
from babyjax.runner import Job, say_ngram, train_side_by_side
from babyjax.runs.directory import run_folder
from babyjax.runs.run import RESULT, Run
from babyjax.sinks import Log
from babyjax.sinks.console import Screen
from babyjax.task import Task, grown, make_trainer
from babyjax.training.events import Event
from babyjax.training.gradient import GradientTrainer

SEEDS = "seeds.json"
SIDE_BY_SIDE = 8  # runs at most, since each keeps open files and a state in memory


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
    if MANIFEST in other:
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


class Done(NamedTuple):
    """How one of many runs ended: its losses, None if a signal ended it, and how it went, in words."""

    losses: Losses | None
    how: str


def train_one(config: Config, task: Task, log: Log | None, screen: Screen, name: str) -> tuple[Done, int]:
    """Train one of many runs, or read its losses if it is trained. Returns also the number of a signal, or 0."""
    (done,), received = train_many([config], task, log, screen, name)
    return done, received


def train_many(
    configs: Sequence[Config], task: Task, log: Log | None, screen: Screen, name: str
) -> tuple[list[Done], int]:
    """Train runs that differ only in their seeds side by side, or read their losses if they are trained.

    If one diverges, they are trained one by one from their checkpoints, so that those before it finish. Returns how
    each ended, and the number of the signal that ended them, or 0.
    """
    try:
        return _train_many(configs, task, log, screen, name)
    except DivergenceError:
        if len(configs) == 1:
            raise
    every, received = [], 0
    for config in configs:
        done, received = train_one(config.replace(overwrite=False), task, log, screen, f"seed {config.train.seed}")
        every.append(done)
        if received:
            break
    return every, received


def _train_many(
    configs: Sequence[Config], task: Task, log: Log | None, screen: Screen, name: str
) -> tuple[list[Done], int]:
    start, trained, received = time.perf_counter(), {}, 0
    with ExitStack() as stack:
        jobs = []
        for config in configs:
            run = stack.enter_context(Run.open(config, task.corpus, task.tokenizer, task.parts))
            learned = task if run.step else grown(config, task)
            jobs.append(Job(run, config, learned, make_trainer(config, learned)))
        for step in sorted({job.run.step for job in jobs}, reverse=True):
            group = [job for job in jobs if job.run.step == step]
            ended = train_side_by_side(group, log, screen, lambda step, total: BarSink(screen, name, step, total))
            trained |= {job.run.folder: each.event for job, each in zip(group, ended, strict=True)}
            received = max(received, *(each.received for each in ended))
            if received:
                break
    took = f"{time.perf_counter() - start:.1f} s{' side by side' * (len(configs) > 1)}"
    return [_done(job, trained, took) for job in jobs], received


def _done(job: Job, trained: dict[Path, Event | None], took: str) -> Done:
    config, folder = job.config, job.run.folder
    if folder not in trained:
        return Done(None, f"left at step {job.run.step:,}")
    event = trained[folder]
    if event is not None and not event.last:
        return Done(None, f"stopped after step {event.step:,}")
    losses = read_losses(folder)
    if event is not None:
        return Done(losses, took)
    if config.choices.trainer == "sgd" and losses.step != config.train.steps:
        raise RunError(
            f"{config.run_dir} is trained for {losses.step:,} steps, not {config.train.steps:,}; use another run_dir=, "
            "or overwrite=true to replace it"
        )
    return Done(losses, "trained before")


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
    size = SIDE_BY_SIDE if gains_side_by_side(configs[0], task) else 1
    for first in range(0, len(seeds), size):
        group = configs[first : first + size]
        last = f" to {group[-1].train.seed}" if len(group) > 1 else f", {first + 1}"
        name = f"seed {seeds[first]}{last} of {len(seeds)}"
        ended, received = train_many(group, task, log, screen, name)
        for config, (losses, how) in zip(group, ended, strict=False):
            if losses is None:
                screen.say(f"{config.train.seed:8}  {how}")
                continue
            above = losses.train - task.entropy
            screen.say(f"{config.train.seed:8} {losses.train:8.4f} {losses.val:8.4f} {above:14.4f}  {how}")
            if found and losses.tokens != found[0].tokens:
                raise RunError(
                    f"{config.run_dir} was evaluated on {losses.tokens:,} tokens, others on {found[0].tokens:,}; train "
                    "all seeds with the same train.eval_tokens="
                )
            found.append(losses)
        if received and (len(found) < first + len(group) or first + size < len(seeds)):
            return found, received
    _write_summary(folder, list(seeds), found)
    return found, 0


def gains_side_by_side(config: Config, task: Task) -> bool:
    """Return whether runs of this config with several seeds are trained side by side, in one program."""
    trainer = make_trainer(config, task)
    return isinstance(trainer, GradientTrainer) and trainer.gains_side_by_side


def say_seeds(config: Config, task: Task, losses: Sequence[Losses], screen: Screen) -> None:
    """Say how the runs of several seeds turned out and where they are."""
    train, val = (Interval.of([getattr(loss, name) for loss in losses]) for name in ("train", "val"))
    if train.error is not None and val.error is not None:
        said = f"train {train.mean:.4f} +- {train.error:.4f}, val {val.mean:.4f} +- {val.error:.4f} nats/token"
        screen.say(f"\nmean      {said} (95 % over {len(losses)} seeds, on this text)")
        screen.say(f"          standard deviation of val between seeds {val.deviation:.4f}")
    say_ngram(config, task, screen)
    if task.sampled:
        screen.say(f"scored    at most {config.train.eval_tokens:,} tokens of each split")
    screen.say(f"saved to  {config.run_dir}, a run per seed")
    screen.say(f"next      {command_line('compare', config.run_dir, 'ANOTHER_RUN')}")


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
