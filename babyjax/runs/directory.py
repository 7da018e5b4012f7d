"""Reading a run directory: everything a run is, in one folder, so that sampling and evaluation need only its path.

run.json (the manifest), config.yaml (the fewest options that give its configuration), tokenizer.json, corpus.txt,
metrics.jsonl and steps/N; a mixture also has parts.json, the configs of the runs that were mixed. A folder is a run if
it has a manifest of ours; no other is ever written to, and only what the manifest lists is ever removed.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from babyjax.config import BabyGPTConfig, Config, MixtureConfig
from babyjax.data.corpus import Corpus, decode_text
from babyjax.data.prepared import PreparedCorpus, is_prepared, open_prepared
from babyjax.data.preparing import load_file
from babyjax.data.tokenizer import Tokenizer, tokenizer_from_json
from babyjax.errors import CheckpointError, ConfigError, DataError, RunError
from babyjax.files import LOCK, MANIFEST, is_temporary, user_path
from babyjax.models import make_model
from babyjax.models.base import LanguageModel
from babyjax.options import config_from_dict
from babyjax.progress import Progress, silent
from babyjax.runs.arrays import Arrays, Place, fill, read_arrays
from babyjax.runs.manifest import Checkpoint, Manifest, read_manifest, sha256_of

STEPS, METRICS, PARTS = "steps", "metrics.jsonl", "parts.json"
# What Orbax takes for a pattern: it would look for its own files elsewhere, and a checkpoint could not be read back.
PATTERN = "[]*?\\"


def run_folder(path: str | Path) -> Path:
    """Return the absolute path of a run directory, which need not exist. Raises: RunError if it cannot be one."""
    folder = user_path(path, RunError)
    if odd := sorted(set(PATTERN) & set(str(folder))):
        raise RunError(f"run_dir={folder} contains {odd[0]!r}, which checkpoints cannot be stored under; rename it")
    return folder


def holds_run(folder: Path) -> bool:
    """Return whether there is a run in `folder`. Raises: RunError if there is something else."""
    try:
        if not folder.exists():
            return False
        if not folder.is_dir():
            raise RunError(f"run_dir={folder} is a file; it must be a folder")
        names = {item.name for item in folder.iterdir() if not is_temporary(item)} - {LOCK}
    except OSError as error:
        raise RunError(f"cannot read the run directory {folder}: {error.strerror}") from None
    if names and MANIFEST not in names:
        raise RunError(f"{folder} holds no run but other files ({min(names)}); use another run_dir")
    return bool(names)


def refuse_run(folder: Path, *, overwrite: bool) -> None:
    """Raises: RunError if `folder` cannot become a new run, because it holds one that is not to be replaced.

    One that has neither a checkpoint nor metrics, as an interrupted import leaves it, has nothing to lose.
    """
    if not holds_run(folder) or overwrite:
        return
    metrics = folder / METRICS
    if saved_checkpoints(folder, read_manifest(folder)) or (metrics.exists() and metrics.stat().st_size):
        raise RunError(f"{folder} already holds a run; use another run_dir=, or overwrite=true to replace it")


def saved_checkpoints(folder: Path, manifest: Manifest) -> dict[int, Checkpoint]:
    """Return the checkpoints of a run whose folders are there, ascending."""
    return {each.step: each for each in manifest.checkpoints if (folder / STEPS / str(each.step)).is_dir()}


def best_step(checkpoints: dict[int, Checkpoint]) -> int | None:
    """Return the step of lowest validation loss among those evaluated, None if there is none."""
    losses = [(each.losses["val"], step) for step, each in checkpoints.items() if "val" in each.losses]
    return min(losses)[1] if losses else None


def choose_step(folder: Path, checkpoints: dict[int, Checkpoint], which: str) -> int:
    """Return the step meant by "newest", "best" or a number. Raises: RunError if there is no such checkpoint."""
    if not checkpoints:
        raise RunError(f"the run in {folder} has no checkpoint yet; finish training or importing it first")
    newest = max(checkpoints)
    named = {"newest": newest, "best": best_step(checkpoints) or newest} | {str(step): step for step in checkpoints}
    if which not in named:
        raise RunError(f"there is no checkpoint of step {which[:20]!r}; choose from {', '.join(named)}")
    return named[which]


def load_arrays(
    folder: Path,
    checkpoints: dict[int, Checkpoint],
    step: int,
    place: Place = lambda name: None,
    part: str = "",
) -> Arrays:
    """Read the arrays of a checkpoint as `read_arrays` does.

    Raises: CheckpointError, with the remedy, if it was damaged or changed.
    """
    path = folder / STEPS / str(step)
    try:
        return read_arrays(path, checkpoints[step].arrays_digest, place, part)
    except CheckpointError as error:
        earlier = [other for other in checkpoints if other < step]
        remedy = f"; remove that folder to use step {earlier[-1]:,}" if earlier else ""
        raise CheckpointError(f"{error}{remedy}") from error


def read_own(folder: Path, manifest: Manifest, name: str) -> str:
    """Read a text of the run. Raises: RunError if it is missing or not the one the run was trained with."""
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    if sha256_of(data) != manifest.files.get(name):
        raise RunError(f"{path} was changed: it is not the one the run was trained with")
    return decode_text(data, str(path)) if data else ""


class LoadedRun(NamedTuple):
    """A trained model and what it needs to be used."""

    folder: Path
    config: Config
    tokenizer: Tokenizer
    model: LanguageModel
    step: int
    manifest: Manifest
    parts: tuple[Config, ...] = ()  # of a mixture

    def corpus(self, path: str | None = None, progress: Progress = silent) -> Corpus | PreparedCorpus:
        """Return the corpus it was trained on: its own copy, or from where it was, or is now: `path`.

        Raises: RunError if it was changed or is not there, or the model was not trained here.
        """
        entry = self.manifest.corpus
        if not entry.characters:
            raise RunError(
                f"{self.folder} has no corpus, since its model was not trained here; text=FILE evaluates on yours"
            )
        where = path or entry.path
        if where is None:
            return Corpus(entry.name, read_own(self.folder, self.manifest, "corpus.txt"))
        data, own = self.config.data, str(self.folder / "tokenizer.json")
        learned = data.tokenizer in ("char", "byte", "bpe")
        try:
            corpus = load_file(where, data.field, data.tokenizer if learned else own, data.vocab_size, progress)
            if isinstance(corpus, PreparedCorpus) and corpus.training().sha256 == entry.sha256:  # a trial of a sweep
                corpus = corpus.training()
            if corpus.sha256 != entry.sha256:
                raise RunError(
                    f"{where} is not the corpus that {self.folder} was trained on: its sha256 is {corpus.sha256[:12]}, "
                    f"not {entry.sha256[:12]}; text= evaluates on another text"
                )
            if isinstance(corpus, PreparedCorpus) and corpus.tokenizer != self.tokenizer:
                corpus = load_file(where, data.field, own, None, progress)  # another version learns other byte pairs
            if isinstance(corpus, PreparedCorpus):
                corpus.check()
        except DataError as error:
            remedy = "" if path else "; if it has moved, say where it is with data.path="
            raise RunError(f"the corpus of {self.folder} cannot be read: {error}{remedy}") from None
        return corpus

    def read(self, path: str, progress: Progress = silent) -> Corpus | PreparedCorpus:
        """Read another text, to be encoded with the tokenizer of this run. Raises: DataError if it cannot be read."""
        if is_prepared(path):
            corpus = open_prepared(path)
            corpus.check()
            return corpus
        return load_file(path, tokenizer=str(self.folder / "tokenizer.json"), progress=progress)


def load_run(path: str | Path, step: str | int = "newest") -> LoadedRun:
    """Load a checkpoint of a run directory: "newest", "best" (lowest validation loss) or a step.

    Raises: RunError if there is none, CheckpointError if it was damaged or changed.
    """
    folder = run_folder(path)
    for many in ("seed-*", "winner/*", "winner/*/seed-*", "trials/*"):  # of train.seeds= or of a sweep
        if runs := sorted(folder.glob(f"{many}/{MANIFEST}")):
            raise RunError(f"{folder} holds several runs; name one, such as {runs[0].parent}")
    if not holds_run(folder):
        raise RunError(f"there is no run in {folder}; train one with run_dir={folder}")
    while True:
        manifest = read_manifest(folder)
        checkpoints = saved_checkpoints(folder, manifest)
        chosen = choose_step(folder, checkpoints, str(step))
        try:
            arrays = load_arrays(folder, checkpoints, chosen, part="model/")
            break
        except CheckpointError:
            if chosen in saved_checkpoints(folder, read_manifest(folder)):
                raise  # it was not removed by a process that trains here
    config = saved_config(folder, manifest)
    tokenizer = tokenizer_from_json(read_own(folder, manifest, "tokenizer.json"))
    parts = _part_configs(folder, manifest) if isinstance(config.model, MixtureConfig) else ()
    make = partial(make_model, vocab_size=tokenizer.vocab_size, key=jax.random.key(0))
    template = jax.eval_shape(lambda: make(config.model, parts=[make(part.model) for part in parts]))
    return LoadedRun(folder, config, tokenizer, fill(arrays, template, "model"), chosen, manifest, parts)


def _part_configs(folder: Path, manifest: Manifest) -> tuple[Config, ...]:
    """Return the configs of the runs that were mixed. Raises: RunError if this version cannot read them."""
    try:
        rows = json.loads(read_own(folder, manifest, PARTS))
        return tuple(_as_used(config_from_dict({k: v for k, v in row.items() if k != "step"})) for row in rows)
    except (ValueError, AttributeError, TypeError, ConfigError) as error:
        raise RunError(f"{folder / PARTS} does not describe runs this version can read: {error}") from None


def saved_config(folder: Path, manifest: Manifest) -> Config:
    """Return the config of a run. Raises: RunError if this version cannot read it."""
    try:
        return _as_used(config_from_dict(manifest.config)).replace(run_dir=str(folder))
    except ConfigError as error:
        raise RunError(f"{folder / MANIFEST} has a configuration this version cannot read: {error}") from None


def _as_used(config: Config) -> Config:
    if isinstance(config.model, BabyGPTConfig):  # trained on a GPU, perhaps, and used on a CPU
        return config.replace(model=config.model.replace(attention="auto"))
    return config
