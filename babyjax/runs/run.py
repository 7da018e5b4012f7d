"""A run under training: the directory it owns, locked, and everything that is written there.

Opening locks and compares, restoring reads, `begin` is the first write. One process at a time may train in a directory.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from babyjax.config import Config
from babyjax.data.corpus import Corpus
from babyjax.data.prepared import PreparedCorpus
from babyjax.data.tokenizer import FILE, Tokenizer
from babyjax.errors import CheckpointError, RunError
from babyjax.files import finite_json, open_appending, refuse_link, remove_temporary, replace_file
from babyjax.options import TOKENIZER, arguments_of, config_to_dict, differences
from babyjax.processes import broadcast, is_main_process, is_multiprocess, same_everywhere
from babyjax.runs.array_digest import digest_of
from babyjax.runs.arrays import UNFINISHED, arrays_to_save, begin_writing, check_arrays, fill, placement_of
from babyjax.runs.directory import (
    METRICS,
    PARTS,
    STEPS,
    LoadedRun,
    best_step,
    holds_run,
    load_arrays,
    run_folder,
    saved_checkpoints,
    saved_config,
)
from babyjax.runs.lock import locked
from babyjax.runs.manifest import Checkpoint, CorpusEntry, Manifest, read_manifest, sha256_of
from babyjax.training.events import Event, State

RESULT, DECOMPOSITION, CORPUS = "result.json", "decomposition.json", "corpus.txt"


class Run:
    """A run being trained in its directory. `step` is that of its newest checkpoint, 0 for a new run.

    If several processes train it, all open and save it, and the first alone locks and writes everything but arrays.
    """

    @classmethod
    @contextmanager
    def open(
        cls,
        config: Config,
        corpus: Corpus | PreparedCorpus,
        tokenizer: Tokenizer,
        parts: Sequence[LoadedRun] = (),
    ) -> Iterator["Run"]:
        """Lock `config.run_dir` and compare the run in it, if any, with this one. `parts` are the runs of a mixture.

        Raises: RunError if the directory is locked, not writable, or belongs to another run.
        """
        folder = run_folder(config.run_dir)
        holds_run(folder)
        refuse_link(folder / METRICS)  # every other file is replaced, not opened
        with locked(folder) if is_main_process() else nullcontext():
            run = cls(folder, config, corpus, tokenizer, parts)
            run._compare_processes()
            try:
                yield run
            finally:
                run._close()

    def __init__(
        self,
        folder: Path,
        config: Config,
        corpus: Corpus | PreparedCorpus,
        tokenizer: Tokenizer,
        parts: Sequence[LoadedRun] = (),
    ):
        self.folder, self._config = folder, config
        self._texts = {"tokenizer.json": tokenizer.to_json()}
        if isinstance(corpus, Corpus):
            self._texts[CORPUS] = corpus.text
        if parts:
            self._texts[PARTS] = json.dumps([config_to_dict(part.config) | {"step": part.step} for part in parts])
        self._manifest = Manifest(
            config=config_to_dict(config),
            corpus=CorpusEntry(name=corpus.name, characters=corpus.characters, sha256=corpus.sha256, path=corpus.path),
            files={name: sha256_of(text) for name, text in self._texts.items()},
            versions={name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
        )
        self.step = 0
        if holds_run(folder):
            self._continue(read_manifest(folder))
        self._metrics: BinaryIO | None = None
        self._metrics_bytes, self._metrics_hash = 0, hashlib.sha256()
        self._saved, self._saved_at = self.step, time.monotonic()
        self._worker, self._saving = ThreadPoolExecutor(1), None

    def _continue(self, found: Manifest) -> None:
        """Take over what the run in the directory has, its checkpoints unless it is to be overwritten."""
        steps = self.folder / STEPS
        if not steps.is_dir() and os.path.lexists(steps):
            raise RunError(f"{steps} is not a folder, or a link to one that is missing; mount or restore it")
        saved = {} if self._config.overwrite else saved_checkpoints(self.folder, found)
        fresh = self._manifest
        if saved:
            self._compare(found)
            # A corpus that is not kept here may have moved.
            corpus = fresh.corpus if found.corpus.path and fresh.corpus.path else found.corpus
            checkpoints = list(saved.values())
            self.step, fresh = max(saved), found.replace(config=fresh.config, corpus=corpus, checkpoints=checkpoints)
        removed = [each.step for each in found.checkpoints if each.step not in saved]
        self._manifest = fresh.replace(pending=[*found.pending, *removed])

    def _compare(self, theirs: Manifest) -> None:
        differing, ours = differences(self._config, saved_config(self.folder, theirs)), self._manifest
        if not differing and ours.corpus.sha256 != theirs.corpus.sha256:
            differing = [f"the corpus has sha256 {theirs.corpus.sha256[:12]} there, {ours.corpus.sha256[:12]} here"]
        for name, what in (
            ("tokenizer.json", "the tokenizer is another"),
            (PARTS, "the runs that are mixed were trained anew"),
        ):
            if not differing and ours.files.get(name) != theirs.files.get(name):
                differing = [what]
        if differing:
            raise RunError(
                f"{self.folder} holds another run: {'; '.join(differing)}. "
                "Use another run_dir=, or overwrite=true to replace it"
            )

    def _compare_processes(self) -> None:
        """Raises: RunError if another process is not about to train the same run."""
        manifest = self._manifest
        config = manifest.config | {"data": {**manifest.config["data"], "path": None}}
        mine = [config, self._config.overwrite, manifest.corpus.sha256, manifest.files, manifest.versions]
        if not same_everywhere(json.dumps(mine)):
            raise RunError("the processes have different options, texts or packages; start all with the same command")
        if not same_everywhere(str(self.step)):
            raise RunError(f"{self.folder} is not one folder for all processes; use a run_dir= that they share")

    def restore(self, template: State) -> State:
        """Return the state of the newest checkpoint in the structure of `template`; `template` for a new run.

        Raises: CheckpointError if the checkpoint was damaged or changed, RunError if metrics.jsonl was.
        """
        if not self.step:
            return template
        state = fill(load_arrays(self.folder, self._checkpoints(), self.step, placement_of(template)), template)
        saved, path = self._checkpoints()[self.step], self.folder / METRICS
        try:
            with path.open("rb") as file:
                rows = file.read(min(saved.metrics_bytes, path.stat().st_size))
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}; overwrite=true starts over") from None
        if sha256_of(rows) != saved.metrics_sha256:
            raise RunError(
                f"{path} was changed: its rows up to step {self.step:,} are not those that were written; "
                "restore it, or use overwrite=true to start over"
            )
        self._metrics_bytes, self._metrics_hash = len(rows), hashlib.sha256(rows)
        return state

    def begin(self) -> None:
        """Make the directory that of this run at `step`: the first write. Raises: RunError if it is not writable."""
        if not is_main_process():
            return
        with self._writing():
            remove_temporary(self.folder)
            self._write_manifest(self._manifest)  # first: it makes the folder a run, whatever happens next
            (self.folder / STEPS).mkdir(exist_ok=True)
            for step in self._manifest.pending:
                self._remove(step)
            self._write_manifest(self._manifest.replace(pending=[]))
            old = (RESULT, DECOMPOSITION, *({CORPUS, PARTS} - self._manifest.files.keys()))
            for name in old:
                (self.folder / name).unlink(missing_ok=True)
            for name, text in self._texts.items() if not self.step else ():
                replace_file(self.folder / name, text)
            options = arguments_of(self._config)
            if options.get(TOKENIZER) == str(self.folder / FILE):
                options[TOKENIZER] = f"./{FILE}"  # beside config.yaml, wherever that is
            content = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
            replace_file(self.folder / "config.yaml", content)
            self._metrics = open_appending(self.folder / METRICS)
            self._metrics.truncate(self._metrics_bytes)

    def record(self, event: Event, *, evaluated: bool) -> None:
        """Append the rows of an event to metrics.jsonl, and save a checkpoint if one is due.

        Losses go into the last row if the step is to be `evaluated`. Those of the last event go into result.json too,
        before its checkpoint makes the run complete. Raises: RunError if the directory is not writable, or as `save`.
        """
        first = event.step - len(event.train_losses) + 1
        rows = [{"step": first + index, "train_loss": float(loss)} for index, loss in enumerate(event.train_losses)]
        if rows:
            rows[-1] |= event.details
            if evaluated and event.losses:
                rows[-1] |= {"eval_train_loss": event.losses["train"].per_token}
                rows[-1] |= {"val_loss": event.losses["val"].per_token}
        data = "".join(_line(row) for row in rows).encode()
        if is_main_process():
            with self._writing():
                assert self._metrics is not None, "begin() comes first"
                self._metrics.write(data)
                self._metrics.flush()
        self._metrics_hash.update(data)
        self._metrics_bytes += len(data)
        if event.last and is_main_process():
            self._write_result(event)
        every = self._config.checkpoint
        late = every.seconds and broadcast(time.monotonic() - self._saved_at > every.seconds)
        if event.last or late or event.step % every.interval == 0:
            self.save(event)

    def save(self, event: Event, *, first: bool = False) -> None:
        """Write the checkpoint of an event in the background, unless it is saved already, or not `first` at step 0.

        All but the newest `checkpoint.keep` and the best are removed once it has been read back and found whole.
        Raises: DivergenceError if a number is NaN or infinite, CheckpointError if this or the last cannot be written.
        """
        if event.step == self._saved and not first:
            return
        self.wait()
        arrays = arrays_to_save(event.state, event.step)
        losses = {name: loss.per_token for name, loss in (event.losses or {}).items()}
        entry = Checkpoint(
            step=event.step,
            losses={name: loss for name, loss in losses.items() if math.isfinite(loss)},
            arrays_digest=digest_of(arrays),
            metrics_bytes=self._metrics_bytes,
            metrics_sha256=self._metrics_hash.hexdigest(),
        )
        with self._saving_of(entry):
            self._announce(entry)
            end = begin_writing(self.folder / STEPS / str(entry.step), arrays)
        self._saving = self._worker.submit(self._complete, entry, end)
        self._saved, self._saved_at = event.step, time.monotonic()

    def wait(self) -> None:
        """Return when the checkpoint being written is complete. Raises: CheckpointError if it cannot be written."""
        saving: Future[None] | None = self._saving
        self._saving = None
        if saving is not None:
            saving.result()

    def _announce(self, entry: Checkpoint) -> None:
        """List a step as pending, before anything of it is written."""
        path = self.folder / STEPS / str(entry.step)
        if is_main_process() and os.path.lexists(path):
            raise CheckpointError(f"{path} is in the way, and not of this run")
        self._write_manifest(self._manifest.replace(pending=[entry.step]))

    def _complete(self, entry: Checkpoint, end: Callable[[], None]) -> None:
        """Wait until a checkpoint is written, read it back, list it, and remove those that are not kept."""
        with self._saving_of(entry):
            end()
            check_arrays(self.folder / STEPS / str(entry.step), entry.arrays_digest)
            every = {each.step: each for each in (*self._manifest.checkpoints, entry)}
            kept = {*list(every)[-self._config.checkpoint.keep :], best_step(every)}
            doomed = [step for step in every if step not in kept]
            manifest = self._manifest.replace(
                checkpoints=[every[step] for step in every if step in kept], pending=doomed
            )
            self._write_manifest(manifest)
            for step in doomed if is_main_process() else ():
                self._remove(step)
            if doomed:
                self._write_manifest(manifest.replace(pending=[]))

    @contextmanager
    def _saving_of(self, entry: Checkpoint) -> Iterator[None]:
        try:
            yield
        except (OSError, CheckpointError) as error:
            earlier = list(self._checkpoints())
            left = f"step {earlier[-1]:,} is kept" if earlier else "no earlier step was saved"
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(
                f"cannot write the checkpoint of step {entry.step:,} in {self.folder} ({reason}); {left}"
            ) from error

    def _write_result(self, event: Event) -> None:
        losses = {
            name: {"nats_per_token": loss.per_token, "bits_per_byte": loss.bits_per_byte, "tokens": loss.tokens}
            for name, loss in (event.losses or {}).items()
        }
        verified = {} if event.verification is None else {"verification": event.verification.as_dict()}
        self._write_json(RESULT, {"step": event.step, "losses": losses, **verified})

    def write_decomposition(self, terms: dict[str, Any]) -> None:
        """Write the decomposition of the loss of a finished run. Raises: RunError if it cannot be written."""
        self._write_json(DECOMPOSITION, terms)

    def has_decomposition(self) -> bool:
        """Return whether the decomposition of the loss has been written since the last step."""
        return (self.folder / DECOMPOSITION).is_file()

    def kept(self) -> str:
        """Say which checkpoint is kept, for a person."""
        steps = list(self._checkpoints())
        return f"step {steps[-1]:,} is kept in {self._config.run_dir}" if steps else "no step was saved before"

    def _checkpoints(self) -> dict[int, Checkpoint]:
        return saved_checkpoints(self.folder, self._manifest)

    def _write_manifest(self, manifest: Manifest) -> None:
        if is_main_process():
            manifest.write(self.folder)
        self._manifest = manifest

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with self._writing():
            replace_file(self.folder / name, json.dumps(finite_json(content), indent=1, allow_nan=False) + "\n")

    def _remove(self, step: int) -> None:
        """Remove the checkpoint of a pending step and what an interrupted save of it left; nothing else is ours.

        It gets the name of an interrupted save first, so that a kill in between leaves what the next run removes.
        """
        folder = self.folder / STEPS
        for path in folder.glob(f"{step}{UNFINISHED}*"):
            _remove_tree(path)
        path = folder / str(step)
        if path.is_symlink() or (path / "_CHECKPOINT_METADATA").is_file():
            _remove_tree(path.rename(folder / f"{step}{UNFINISHED}-removed"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"cannot write in the run directory {self.folder}: {error.strerror or error}") from None

    def _close(self) -> None:
        if self._metrics is not None:
            with suppress(OSError):  # a row that could not be written has been reported
                self._metrics.close()
        # What is still being saved after an error may wait for a process that is lost.
        self._worker.shutdown(wait=not is_multiprocess())


def _remove_tree(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _line(row: dict[str, Any]) -> str:
    present = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
    return json.dumps(finite_json(present), allow_nan=False) + "\n"
