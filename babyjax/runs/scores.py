"""Losses of runs on one text, token by token, to be compared."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from babyjax.config import Config
from babyjax.data.batches import Split, bytes_of, split_tokens
from babyjax.data.corpus import Corpus
from babyjax.data.prepared import PreparedCorpus
from babyjax.data.tokenizer import Tokenizer
from babyjax.errors import ConfigError, RunError
from babyjax.evaluation.comparison import Scored
from babyjax.evaluation.evaluator import token_nats
from babyjax.files import MANIFEST, user_path
from babyjax.options import options_of
from babyjax.progress import Progress
from babyjax.runs.directory import LoadedRun, load_run
from babyjax.runs.manifest import CorpusEntry
from babyjax.text import truncated


class ScoredRun(NamedTuple):
    """A run, without its arrays, and its losses on a text."""

    folder: Path
    config: Config
    step: int
    tokenizer: Tokenizer
    corpus: CorpusEntry  # the text it was trained on
    seeded: bool  # whether another seed would give another model
    scored: Scored
    by_position: Float[np.ndarray, " T"] | None  # mean losses by length of the context

    @property
    def recipe(self) -> dict[str, Any]:
        """All that makes the run except for its seed."""
        config, names = self.config, self.config.choices
        kinds = {"model": type(config.model), "trainer": names.trainer, "optimizer": type(config.optimizer)}
        chosen = {
            key: value
            for key, value, option in options_of(config)
            if not option.json_schema_extra["free"] and key != "train.seed"
        }
        return {**kinds, "text": self.corpus.sha256, "step": self.step, **chosen}

    @property
    def names(self) -> dict[str, str]:
        """What to call entries of the recipe that are no values of options."""
        corpus, choices = self.corpus, self.config.choices
        text = f"{corpus.name} {corpus.sha256[:12]}" if corpus.characters else "none"
        return {"model": choices.model, "optimizer": choices.optimizer, "text": text}


class ReadText(NamedTuple):
    """A text as the tokens of one tokenizer."""

    corpus: Corpus | PreparedCorpus
    split: Split
    ends: Int[np.ndarray, " M"]  # of each validation token, in bytes of the text


@dataclass
class RunReader:
    """Reads and scores runs, on the `text` or on the corpus they were trained on. Each text is read once."""

    step: str | int
    text: str | None
    data_path: str | None
    stride: int | None
    by_position: bool
    progress: Progress
    texts: dict[Any, ReadText] = field(default_factory=dict)

    def side(self, path: str) -> list[ScoredRun]:
        """Return the runs behind a path. Raises: RunError if they differ in more than their seed."""
        runs = [self.score(folder) for folder in _folders(path)]
        for run in runs[1:]:
            if different := differing_options(runs[0], run):
                key, (ours, theirs) = next(iter(different.items()))
                raise RunError(
                    f"{path} does not hold seeds of one recipe: {key} is {truncated(ours)} in "
                    f"{runs[0].folder.name}, {truncated(theirs)} in {run.folder.name}"
                )
        return runs

    def score(self, folder: Path) -> ScoredRun:
        """Load a run and compute its losses. Raises: ConfigError if `stride` is too long, RunError, DataError."""

        def evaluating(split: str, share: float) -> None:
            self.progress(f"evaluating {folder}", share)

        evaluating("val", 0.0)  # loading and compiling come before the first share
        run = load_run(folder, self.step)
        text, sizes, longest = self.text_of(run), run.tokenizer.byte_lengths, run.model.max_length
        if longest is None:
            stride = None
        elif self.stride is not None and self.stride > longest:
            raise ConfigError(f"stride={self.stride} is longer than the block of {longest} of {folder}")
        else:
            stride = self.stride or max(1, longest // 2)
        nats = token_nats(run.model, text.split, sizes, "val", stride, evaluating)
        by_position = None
        if self.by_position and longest is not None and longest > 1 and run.config.choices.trainer != "mixing":
            windows = token_nats(run.model, text.split, sizes, "val", longest, evaluating)
            windows = windows[: len(windows) // longest * longest].reshape(-1, longest)
            by_position = windows.mean(axis=0) if len(windows) else None
        return ScoredRun(
            folder,
            run.config,
            run.step,
            run.tokenizer,
            run.manifest.corpus,
            run.config.seeded or any(part.seeded for part in run.parts),
            Scored(nats, text.ends[1:], int(text.ends[0])),
            by_position,
        )

    def text_of(self, run: LoadedRun) -> ReadText:
        """Read and split the text of a run.

        Raises: RunError if the tokenizer does not say how many bytes its tokens are.
        """
        key = run.tokenizer.to_json(), None if self.text else run.manifest.corpus.sha256
        if key not in self.texts:
            corpus = run.read(self.text, self.progress) if self.text else run.corpus(self.data_path, self.progress)
            split, sizes = split_tokens(corpus.encode(run.tokenizer)), run.tokenizer.byte_lengths
            ends = bytes_of(split.train, sizes) + sizes[split.val].cumsum()
            if ends[-1] != corpus.bytes:
                raise RunError(
                    f"the tokens of {run.folder} are {int(ends[-1]):,} bytes, but {corpus.name} has {corpus.bytes:,}; "
                    "losses per byte of such a tokenizer cannot be compared"
                )
            self.texts[key] = ReadText(corpus, split, ends)
        return self.texts[key]


def _folders(path: str) -> list[Path]:
    """Return the run directories behind a path: itself, or a folder for each seed. Raises: RunError."""
    folder = user_path(path, RunError)
    found = [child for child in folder.glob("seed-*") if child.name.removeprefix("seed-").isdigit()]
    if (folder / MANIFEST).exists() or not found:
        return [folder]
    return sorted(found, key=lambda child: int(child.name.removeprefix("seed-")))


def differing_options(a: ScoredRun, b: ScoredRun) -> dict[str, list[Any]]:
    """Return what the recipes of two runs both have and in which they differ, with its two values."""
    ours, theirs = a.recipe, b.recipe
    return {
        key: [a.names.get(key, value), b.names.get(key, theirs[key])]
        for key, value in ours.items()
        if key in theirs and value != theirs[key]
    }
