"""The run directory: everything a run is, in one place, so that sampling and evaluation need only its path.

config.yaml, tokenizer.json, corpus.txt, metrics.jsonl and steps/. A folder is a run where its `config.yaml` is one of
ours; no other is ever written to. One process at a time may train in it.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from filelock import FileLock, Timeout

from babyjax.config import config_from_dict, differences, load_saved_config, save_config
from babyjax.data.corpus import Corpus, fingerprint, read_corpus
from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, tokenizer_from_json
from babyjax.errors import CheckpointError, ConfigError, RunError
from babyjax.files import UNFINISHED, replace_file, user_path
from babyjax.models import make_model
from babyjax.schema import Config, CountsConfig
from babyjax.training.checkpoint import Checkpoints, Saved, discard
from babyjax.training.metrics import add_ledger, append_rows, has_ledger, rewind_rows

LOCK = ".lock"
# What a file system that knows no locks answers, some network mounts.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class RunDirectory:
    """Reads and writes one run. `path` need not exist."""

    def __init__(self, path: str | Path):
        self.path = user_path(path, RunError)
        self.checkpoints = Checkpoints(self.path / "steps")
        self._metrics = self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether there is a run here. Raises `RunError` where there is something else: it is nobody's to touch."""
        try:
            if not self.path.exists():
                return False
            if not self.path.is_dir():
                raise RunError(f"run_dir={self.path} is a file; it must be a folder")
            names = sorted({item.name for item in self.path.iterdir()} - {LOCK, "config.yaml" + UNFINISHED})
        except OSError as error:
            raise RunError(f"cannot read the run directory {self.path}: {error.strerror}") from None
        if "config.yaml" in names:
            load_saved_config(self.path / "config.yaml")
            return True
        if names:
            raise RunError(f"{self.path} holds no run but other files ({names[0]}); use another run_dir")
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here. The system drops the lock of a process that dies."""
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise RunError(f"another process is training in {self.path}; wait for it or use another run_dir") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise self._cannot_write(error) from None
        try:
            yield
        finally:
            lock.release()

    def create(self, config: Config, tokenizer: CharTokenizer | ByteTokenizer, corpus: Corpus) -> None:
        """Start a run here, in place of any that was. Raises `RunError` where that cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            discard(self.checkpoints.folder)
            self._metrics.unlink(missing_ok=True)
            # From here on, killed at any moment, this is a run without a checkpoint: the next start begins it again.
            save_config(config, self.path / "config.yaml")
            replace_file(self.path / "corpus.txt", corpus.text)
            replace_file(self.path / "tokenizer.json", tokenizer.to_json())
            self.checkpoints.folder.mkdir()
        except OSError as error:
            raise self._cannot_write(error) from None

    def check_same_run(self, config: Config, corpus: Corpus) -> None:
        """Raises `RunError` naming what differs where `config` and `corpus` are not those of the run here."""
        differing = differences(config, self.config())
        if not differing and corpus.sha256 != (theirs := self.corpus().sha256):
            differing = [f"the corpus has sha256 {theirs[:12]} there, {corpus.sha256[:12]} here"]
        if differing:
            raise RunError(
                f"{self.path} holds another run: {'; '.join(differing)}. "
                "Use another run_dir=, or overwrite=true to start anew"
            )

    def rewind(self, config: Config, step: int) -> None:
        """Make the files what they were when step `step` was reached. Raises `RunError` where that cannot be."""
        try:
            self.checkpoints.remove_unfinished()
            evaluated_each_step = isinstance(config.trainer, CountsConfig)
            rewind_rows(self._metrics, step, 1 if evaluated_each_step else config.train.eval_interval)
            save_config(config, self.path / "config.yaml")
        except OSError as error:
            raise self._cannot_write(error) from None

    def add_rows(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to metrics.jsonl. Raises `RunError` where that cannot be written."""
        try:
            append_rows(self._metrics, rows)
        except OSError as error:
            raise self._cannot_write(error) from None

    def add_ledger(self, ledger: dict[str, Any]) -> None:
        """Put the ledger of the finished run into metrics.jsonl. Raises `RunError` where that cannot be written."""
        try:
            add_ledger(self._metrics, ledger)
        except OSError as error:
            raise self._cannot_write(error) from None

    def has_ledger(self) -> bool:
        """Whether metrics.jsonl has the ledger of the finished run."""
        return has_ledger(self._metrics)

    def _cannot_write(self, error: OSError) -> RunError:
        return RunError(f"cannot write in the run directory {self.path}: {error.strerror or error}")

    def config(self) -> Config:
        """The configuration of the run. Raises `RunError` where there is none."""
        if not self.exists():
            raise RunError(f"there is no run in {self.path}; train one with run_dir={self.path}")
        return load_saved_config(self.path / "config.yaml")

    def tokenizer(self) -> CharTokenizer | ByteTokenizer:
        """The tokenizer the run was trained with."""
        return tokenizer_from_json(read_corpus(self.path / "tokenizer.json").text)

    def corpus(self) -> Corpus:
        """The text the run was trained on."""
        return Corpus(self.config().data.name, read_corpus(self.path / "corpus.txt").text)

    def choose_step(self, which: str) -> int:
        """The step meant by "newest", "best" or a number. Raises `RunError` where there is no such checkpoint."""
        steps = self.checkpoints.steps()
        if not steps:
            raise RunError(f"the run in {self.path} has no checkpoint yet; train it first")
        if which == "newest":
            return steps[-1]
        if which == "best":
            best = self.checkpoints.best()
            return steps[-1] if best is None else best
        if which.isdecimal() and int(which) in steps:
            return int(which)
        raise RunError(
            f"there is no checkpoint of step {which!r}; there are newest, best, {', '.join(map(str, steps))}"
        )

    def load(self, which: str = "newest") -> Saved:
        """The checkpoint `choose_step` means, also while a process that trains here removes old ones."""
        while True:
            steps = self.checkpoints.steps()
            chosen = self.choose_step(which)
            try:
                return self.checkpoints.load(chosen)
            except CheckpointError:
                if self.checkpoints.steps() == steps:
                    raise


def describe(config: Config, tokenizer: CharTokenizer | ByteTokenizer, corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    return {
        "config": asdict(config),
        "tokenizer": {
            "type": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "sha256": fingerprint(tokenizer.to_json()),
        },
        "corpus": {"name": corpus.name, "characters": len(corpus.text), "sha256": corpus.sha256},
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
    }


class Run(NamedTuple):
    """A trained model and what it needs to be used; `about` is what its checkpoint says of it."""

    directory: RunDirectory
    config: Config
    tokenizer: CharTokenizer | ByteTokenizer
    model: Any
    step: int
    about: dict[str, Any]

    def corpus(self) -> Corpus:
        """The text it was trained on. Raises `RunError` where that is no longer the text beside the checkpoint."""
        corpus = self.directory.corpus()
        check_own_corpus(self.about, corpus, self.directory)
        return corpus


def load_run(path: str | Path, step: str = "newest") -> Run:
    """A checkpoint of a run directory: "newest", "best" (lowest validation loss) or a step's number.

    Raises `RunError` where there is none, `CheckpointError` where it is damaged or the files beside it are not its own.
    """
    directory = RunDirectory(path)
    config, tokenizer = directory.config(), directory.tokenizer()
    saved = directory.load(step)
    check_own_files(saved.about, config, tokenizer, directory)
    template = jax.eval_shape(lambda: make_model(config.model, tokenizer.vocab_size, jax.random.key(0)))
    model = saved.fill(template, "model")
    return Run(directory, config, tokenizer, model, saved.about["step"], saved.about)


def check_own_files(
    about: dict[str, Any], config: Config, tokenizer: CharTokenizer | ByteTokenizer, directory: RunDirectory
) -> None:
    """Raises `RunError` where config or tokenizer of a run directory are not those its checkpoint was made with."""
    try:
        changed = differences(config, config_from_dict(about["config"]))
        about["corpus"]["sha256"]
        if about["tokenizer"]["sha256"] != fingerprint(tokenizer.to_json()):
            changed.append("tokenizer.json is another")
    except (KeyError, TypeError, ConfigError) as error:
        changed = [f"its description is damaged ({error})"]
    if changed:
        raise _not_its_own(directory, "; ".join(changed))


def check_own_corpus(about: dict[str, Any], corpus: Corpus, directory: RunDirectory) -> None:
    """Raises `RunError` where `corpus` is not the text the checkpoint was trained on."""
    if about["corpus"]["sha256"] != corpus.sha256:
        raise _not_its_own(directory, "corpus.txt is another")


def _not_its_own(directory: RunDirectory, what: str) -> RunError:
    return RunError(f"the files in {directory.path} are not those its checkpoint was made with: {what}")
