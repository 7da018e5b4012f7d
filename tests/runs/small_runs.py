"""Runs of a few bytes, made without training, for the tests of the run directory."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from babyjax import BabyGPT, CharTokenizer, Corpus, Event, Run, init_state, load_config
from babyjax.evaluation.losses import Nats
from babyjax.runs.directory import saved_checkpoints
from babyjax.runs.manifest import Checkpoint, read_manifest
from babyjax.training.events import State
from babyjax.training.optimizer import make_optimizer

CORPUS = Corpus("mine", "abcd" * 30)
TOKENIZER = CharTokenizer.fit(CORPUS.text)


def config_of(folder: Path, *arguments: str) -> Any:
    """The config of a run of CORPUS. Nothing is saved by itself, and 9 checkpoints are kept."""
    return load_config([f"run_dir={folder}", "data.path=mine.txt", "model.n_embd=3", "checkpoint.keep=9", *arguments])


@cache
def state_of(step: int) -> State:
    """A state that differs from that of every other step."""
    config = config_of(Path("nowhere"))
    model = jax.jit(lambda key: BabyGPT(config.model, 4, key))(jax.random.key(step))
    return init_state(model, make_optimizer(config.optimizer, 9))._replace(step=np.int32(step))


def event_of(step: int, steps: int = 1, val: float | None = None, **fields) -> Event:
    """The event of the last `steps` steps up to `step`, evaluated if a validation loss is given."""
    losses = None if val is None else {name: Nats(9 * val, 9, 9, None) for name in ("train", "val")}
    return Event(step, state_of(step), 1.0 / np.arange(step - steps + 1, step + 1), 0.1, losses=losses, **fields)


def train(folder: Path, *events: Event, arguments: tuple[str, ...] = ()) -> State:
    """Record and save events in a new or continued run. Returns the state it started from."""
    with Run.open(config_of(folder, *arguments), CORPUS, TOKENIZER) as run:
        state = run.restore(state_of(0))
        run.begin()
        for event in events:
            run.record(event, evaluated=event.losses is not None)
            run.save(event)
        run.wait()
    return state


def saved(folder: Path) -> dict[int, Checkpoint]:
    """The checkpoints in a run directory."""
    return saved_checkpoints(folder, read_manifest(folder))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
