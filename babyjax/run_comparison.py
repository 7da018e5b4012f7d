"""Runs compared on one text: their losses, which is better, and where they differ."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from babyjax.data.tokenizer import Tokenizer
from babyjax.errors import ConfigError, RunError
from babyjax.evaluation.comparison import Difference, Interval, Side, common_edges, judge
from babyjax.progress import Progress, silent
from babyjax.runs.directory import METRICS
from babyjax.runs.scores import ReadText, RunReader, ScoredRun, differing_options
from babyjax.task import ngram_baseline

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Tokens and places that are listed, on each side.
LISTED = 5


def compare_runs(
    paths: Sequence[str | Path],
    *,
    step: str | int = "newest",
    text: str | None = None,
    data_path: str | None = None,
    stride: int | None = None,
    resolution: float = 0.005,
    by_position: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare runs with the first of them. Returns what `babyjax compare format=json` prints, infinities included.

    A path is a run directory, or a folder with a run per seed. Losses are in nats per token, or in bits per byte if the
    tokenizers differ. Only the part of the text that every run has scored counts. The intervals of several comparisons
    hold together (Bonferroni). With `by_position` the result also has losses by length of the context.

    Raises: ConfigError if fewer than two or too many are given, RunError if they cannot be compared, DataError if the
    text cannot be read.
    """
    if not 2 <= len(paths) <= len(LETTERS):
        raise ConfigError(f"name 2 to {len(LETTERS)} runs to compare, not {len(paths)}: babyjax compare RUN RUN")
    reader = RunReader(step, text, data_path, stride, by_position, progress)
    names = list(map(str, paths))
    sides = [reader.side(name) for name in names]
    runs = [run for side in sides for run in side]
    _check_texts(runs, text)
    first, read = runs[0].scored, next(iter(reader.texts.values()))
    same = len({run.tokenizer.to_json() for run in runs}) == 1
    edges = common_edges([run.scored for run in runs])
    units = np.diff(np.searchsorted(first.ends, edges, side="right")) if same else np.diff(edges)
    unit, scale = ("nats per token", 1.0) if same else ("bits per byte", 1 / math.log(2))
    compared = [
        Side(
            np.stack([run.scored.segments(edges) for run in side]) * scale,
            tuple(run.config.train.seed for run in side),
            side[0].seeded,
        )
        for side in sides
    ]
    rows = [
        {"name": letter, "run": name, **_about(side), **_losses(side, nats, units, edges)}
        for letter, name, side, (nats, *_) in zip(LETTERS, names, sides, compared, strict=False)
    ]
    level = 1 - 0.05 / (len(sides) - 1)
    verdicts = [
        _verdict((LETTERS[0], letter), (compared[0], other), (sides[0][0], side[0]), units, unit, resolution, level)
        | (_where(sides[0], side, read) if same else {})
        for letter, other, side in zip(LETTERS[1:], compared[1:], sides[1:], strict=False)
    ]
    result = {
        "corpus": read.corpus.name,
        "unit": unit,
        "tokens": int(units.sum()) if same else None,
        "bytes": int(edges[-1] - edges[0]),
        "segments": len(units),
        "runs": rows,
        "comparisons": verdicts,
    }
    if same and text is None:
        ngram = ngram_baseline(read.split, runs[0].tokenizer.vocab_size)
        result |= {"ngram_order": ngram.order, "ngram": ngram.val}
    return result


def _verdict(
    names: tuple[str, str],
    sides: tuple[Side, Side],
    first: tuple[ScoredRun, ScoredRun],
    units: Int[np.ndarray, " K"],
    unit: str,
    resolution: float,
    level: float,
) -> dict[str, Any]:
    """Return which of two sides is better; `first` are their first runs."""
    difference, recipes = Difference.between(*sides, units), [run.recipe for run in first]
    trainable = all(run.config.seeded for run in first if run.seeded)  # a mixture has only the seeds of its parts
    verdict = judge(
        difference,
        unit,
        names=names,
        same_recipe=recipes[0] == recipes[1] and sides[0].seeded,
        seeds=min([len(side.seeds) for side in sides if side.seeded], default=1),
        resolution=resolution,
        level=level,
        remedy="use train.seeds=4" if trainable else "give its parts several seeds",
    )
    return {
        "runs": list(names),
        "verdict": verdict.words,
        "better": verdict.better,
        "difference": difference.mean,
        "half_width": difference.half_width(level),
        "level": level,
        "standard_error_of_text": difference.of_text,
        "standard_error_of_seeds": difference.of_seeds,
        "paired_by_seed": difference.paired,
        "differing_options": differing_options(*first),
    }


def _check_texts(runs: list[ScoredRun], text: str | None) -> None:
    """Raises: RunError if the runs have other texts, or no part of the text in common."""
    first = runs[0]
    for run in runs:
        if not text and run.corpus.sha256 != first.corpus.sha256:
            raise RunError(
                f"{first.folder} has the text {first.corpus.name}, {run.folder} has {run.corpus.name}; text=FILE "
                "compares both on one text"
            )
    scored = [run.scored for run in runs]
    if max(each.start for each in scored) >= min(each.ends[-1] for each in scored):
        raise RunError("the validation splits of these runs have no text in common; their tokenizers differ too much")


def _about(side: list[ScoredRun]) -> dict[str, Any]:
    first = side[0]
    return {
        "model": first.config.choices.model,
        "step": first.step,
        "seeds": [run.config.train.seed for run in side],
        "by_position": [run.by_position.tolist() for run in side if run.by_position is not None],
        "curves": [_curve(run.folder, run.step) for run in side],
    }


def _losses(
    side: list[ScoredRun], losses: Float[np.ndarray, "S K"], units: Int[np.ndarray, " K"], edges: Int[np.ndarray, " _"]
) -> dict[str, Any]:
    """Return the losses of a side, by seed and over seeds, from those of its runs on each segment."""
    by_seed = [float(loss) for loss in losses.sum(axis=1) / units.sum()]
    interval = Interval.of(by_seed)
    nats = np.mean([float(run.scored.segments(edges).sum()) for run in side])
    return {
        "losses": by_seed,
        "mean": interval.mean,
        "interval": interval.error,
        "bits_per_byte": float(nats) / math.log(2) / int(edges[-1] - edges[0]),
    }


def _curve(folder: Path, last: int) -> list[tuple[int, float]]:
    """Return the validation losses that a run has recorded, by step; none if its metrics cannot be read."""
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if '"val_loss"' in line]
        return [(row["step"], row["val_loss"]) for row in rows if row["step"] <= last and row["val_loss"] is not None]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _where(a: list[ScoredRun], b: list[ScoredRun], text: ReadText) -> dict[str, Any]:
    """Return the tokens and the places where two sides of one tokenizer differ most, in nats, means over seeds.

    Nothing is returned if a loss is infinite or NaN.
    """
    tokenizer, targets = a[0].tokenizer, text.split.val[1:]
    nats = [np.mean([run.scored.nats for run in side], axis=0) for side in (a, b)]
    if not np.isfinite(nats).all():
        return {}
    gap = nats[1] - nats[0]
    total = np.bincount(targets, gap, tokenizer.vocab_size)
    count = np.bincount(targets, minlength=tokenizer.vocab_size)
    tokens = [
        {"token": _token_text(tokenizer, token), "times": int(count[token]), "share": float(total[token] / len(gap))}
        for token in _extremes(total)
        if count[token]
    ]
    places = [
        {
            "before": tokenizer.decode(text.split.val[max(0, place - 39) : place + 1]),
            "token": _token_text(tokenizer, int(targets[place])),
            "nats": [float(each[place]) for each in nats],
        }
        for place in _extremes(gap)
    ]
    return {"tokens": tokens, "places": places}


def _extremes(values: Float[np.ndarray, " N"]) -> list[int]:
    """Return where the smallest and the largest values are, each from the outside in."""
    order = values.argsort().tolist()
    return list(dict.fromkeys([*order[:LISTED], *order[: -LISTED - 1 : -1]]))


def _token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token, or its word if it is a part of a character."""
    text = tokenizer.decode([token])
    return tokenizer.words[token] if "\ufffd" in text else text
