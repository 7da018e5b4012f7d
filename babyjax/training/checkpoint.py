"""The run directory: everything a run is, in one place, so that sampling and evaluation need only its path.

config.yaml, tokenizer.json, corpus.txt, metrics.jsonl, and steps/N: the state after N steps, written by Orbax as plain
arrays. `config.yaml` is written last: a directory without it holds no run.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from babyjax.config import Config, differences, load_saved_config, save_config
from babyjax.data.corpus import Corpus, read_corpus
from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, tokenizer_from_json
from babyjax.errors import RunError
from babyjax.models import make_model
from babyjax.training.metrics import append_rows, drop_rows_after

FILES = ("config.yaml", "tokenizer.json", "corpus.txt", "metrics.jsonl", "steps")
SCHEMA_VERSION = 1

Tree = TypeVar("Tree")


def named_arrays(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, "model/lm_head/kernel": the same in every version of flax."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_names(path)): leaf for path, leaf in leaves}


def _names(path: tuple) -> list[str]:
    names = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return names[:-1] if names[-1] == "value" else names  # an nnx.Variable's only child


class RunDirectory:
    """Reads and writes one run. `path` need not exist."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().resolve()  # Orbax asks for absolute paths
        self._metrics = self.path / "metrics.jsonl"
        self._steps = self.path / "steps"
        self._saving: Any = None

    def exists(self) -> bool:
        """Whether there is a run here. Raises `RunError` where there is something else."""
        if self.path.is_dir():
            if (self.path / "config.yaml").is_file():
                return True
            if strangers := sorted(item.name for item in self.path.iterdir() if item.name not in FILES):
                raise RunError(f"{self.path} holds no run but other files ({strangers[0]}); use another run_dir")
        elif self.path.exists():
            raise RunError(f"run_dir={self.path} is a file; it must be a folder")
        return False

    def create(self, config: Config, tokenizer: CharTokenizer | ByteTokenizer, corpus: Corpus) -> None:
        """Start a run here, in place of any that was."""
        try:
            for name in FILES:
                item = self.path / name
                shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)
            self._steps.mkdir(parents=True)
            (self.path / "corpus.txt").write_text(corpus.text, encoding="utf-8", newline="\n")
            (self.path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
            save_config(config, self.path / "config.yaml")
        except OSError as error:
            raise RunError(f"cannot write the run directory {self.path}: {error.strerror}") from None

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

    def keep_rows(self, rows: list[dict[str, Any]], after: int | None = None) -> None:
        """Add rows to metrics.jsonl; with `after`, the rows of later steps are dropped first."""
        if after is not None:
            drop_rows_after(self._metrics, after)
        append_rows(self._metrics, rows)

    def saved_steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending: Orbax names a step only when all of it is written."""
        return sorted(int(item.name) for item in self._steps.glob("*") if item.name.isdecimal())

    def save(self, state: Any, step: int, keep: int, losses: dict[str, float] | None = None) -> None:
        """Write `state` as steps/`step`, in the background; once it is there, all but the newest `keep` are dropped."""
        from orbax.checkpoint import v1 as ocp  # takes a second to import, and a first step need not wait for it

        self.wait()
        # Copies: the next step is given the buffers of this one while Orbax is still writing.
        arrays = {name: np.array(leaf) for name, leaf in named_arrays(state).items()}
        metadata = {"schema_version": SCHEMA_VERSION, "step": step, "losses": losses or {}}
        self._saving = (
            ocp.save_async(str(self._steps / str(step)), arrays, overwrite=True, custom_metadata=metadata),
            keep,
        )

    def wait(self) -> None:
        """Return when the checkpoint being written is complete. Raises `RunError` where it could not be written."""
        if self._saving is None:
            return
        (response, keep), self._saving = self._saving, None
        try:
            response.result()
        except OSError as error:
            raise RunError(f"cannot write a checkpoint in {self._steps}: {error.strerror or error}") from error
        for old in self.saved_steps()[:-keep]:
            shutil.rmtree(self._steps / str(old))

    def restore(self, template: Tree, step: int, part: str = "") -> Tree:
        """The arrays of steps/`step` in the structure of `template`, a pytree of arrays or of their shapes.

        `part` is the path of `template` in what was saved. Raises `RunError` where names, shapes or types differ.
        """
        from orbax.checkpoint import v1 as ocp

        folder = self._steps / str(step)
        try:
            saved = ocp.metadata(str(folder)).metadata
            arrays = ocp.load(str(folder), {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in saved.items()})
        except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
            raise RunError(f"{folder} is not a checkpoint that can be read ({type(error).__name__})") from error
        wanted = named_arrays({part: template} if part else template)
        for name, leaf in wanted.items():
            found = arrays.get(name)
            if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
                has = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
                raise RunError(f"{folder} does not fit: {name} should be {leaf.dtype}{list(leaf.shape)}, it has {has}")
        return jax.tree.unflatten(jax.tree.structure(template), [jax.device_put(arrays[name]) for name in wanted])


class Run(NamedTuple):
    """A trained model and what it needs to be used."""

    config: Config
    tokenizer: CharTokenizer | ByteTokenizer
    model: Any
    step: int


def load_run(path: str | Path) -> Run:
    """The newest checkpoint of a run directory. Raises `RunError` where there is none."""
    directory = RunDirectory(path)
    config, tokenizer = directory.config(), directory.tokenizer()
    steps = directory.saved_steps()
    if not steps:
        raise RunError(f"the run in {directory.path} has no checkpoint yet; train it first")
    template = jax.eval_shape(lambda: make_model(config.model, tokenizer.vocab_size, jax.random.key(0)))
    return Run(config, tokenizer, directory.restore(template, steps[-1], "model"), steps[-1])
