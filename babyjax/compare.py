"""`babyjax compare RUN RUN ...`: which of several runs is better, with an interval and a verdict in words."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import babyjax
from babyjax.cli import describe, prepare_jax, print_result, run_command
from babyjax.config import Config, MovedConfig, Options, option, size
from babyjax.errors import BabyjaxError, ConfigError, RunError
from babyjax.files import finite_json, user_path
from babyjax.options import options_of, read_options
from babyjax.text import truncated

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Tokens and places that are listed.
LISTED = 5


class CompareConfig(Options):
    step: str = option("newest", "checkpoint: newest, best (by validation loss) or a step")
    text: str | None = option(None, "compare on this text instead of the runs' corpus")
    data: MovedConfig = MovedConfig()
    stride: int | None = size(None, "tokens between context windows (empty: half a block)")
    resolution: float = option(0.005, "difference that more seeds should resolve", gt=0, le=100)
    picture: str | None = option(None, "draw curves into this .svg or .png file")
    format: Literal["text", "json"] = option("text", "sentences and tables, or one JSON object")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax compare RUN RUN ... [key=value ...]\n\n"
        "Which run is better? Every run is compared with the first, on every token of the validation split.\n"
        "A RUN is a run directory, or one of train.seeds= with a run per seed. With several seeds the verdict\n"
        "is about the recipe, with one about the trained model. Across tokenizers it is in bits per byte.\n\n"
        f"{describe(CompareConfig())}\n\n"
        "examples\n"
        "  babyjax compare checkpoints/babygpt-pydocs checkpoints/bigram-pydocs\n"
        "  babyjax compare checkpoints/babygpt-pydocs-seeds checkpoints/bigram-pydocs picture=compared.svg"
    )


class Member(NamedTuple):
    """One run of a side: what is known of it, without its arrays, and its losses on the text."""

    folder: Path
    config: Config
    step: int
    tokenizer: "babyjax.Tokenizer"
    corpus: str  # name and sha256 of the text it was trained on
    sha256: str
    seeded: bool  # whether another seed would give another model
    scored: "babyjax.Scored"
    positions: Any  # losses by length of the context, or None

    @property
    def recipe(self) -> dict[str, Any]:
        """What makes the run, but for its seed."""
        chosen = {
            key: value
            for key, value, field in options_of(self.config)
            if not field.json_schema_extra["free"] and key != "train.seed"
        }
        names, kinds = self.config.choices, (type(self.config.model), type(self.config.optimizer))
        return (
            {"model": kinds[0], "trainer": names.trainer, "optimizer": kinds[1], "text": self.sha256}
            | {"step": self.step}
            | chosen
        )


class Text(NamedTuple):
    """A text as the tokens of one tokenizer."""

    corpus: "babyjax.Corpus | babyjax.PreparedCorpus"
    split: "babyjax.Split"
    ends: Any  # of every validation token, in bytes of the text
    start: int  # of the first


def compare(paths: Sequence[str], config: CompareConfig, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Compare runs with the first of them and return what `format=json` prints.

    Losses are in nats per token, or in bits per byte if the tokenizers differ. Only the part of the text that every run
    has scored counts. The intervals of several comparisons hold together (Bonferroni). For a picture the result also
    has losses by length of the context.

    Raises: ConfigError if fewer than two or too many are given, RunError if they cannot be compared,
    DataError if the text cannot be read.
    """
    if not 2 <= len(paths) <= len(LETTERS):
        raise ConfigError(f"name 2 to {len(LETTERS)} runs to compare, not {len(paths)}: babyjax compare RUN RUN")
    folders = [_folders(path) for path in paths]
    texts: dict[Any, Text] = {}
    sides = []
    for path, members in zip(paths, folders, strict=True):
        side = [_member(folder, config, texts, progress) for folder in members]
        _check_recipe(path, side)
        sides.append(side)
    _check_texts(sides, config.text)
    return _compared(paths, sides, next(iter(texts.values())), config)


def _folders(path: str) -> list[Path]:
    """Return the run directories behind a path: itself, or a folder for each seed. Raises: RunError."""
    folder = user_path(path, RunError)
    found = [child for child in folder.glob("seed-*") if child.name.removeprefix("seed-").isdigit()]
    if (folder / "run.json").exists() or not found:
        return [folder]
    return sorted(found, key=lambda child: int(child.name.removeprefix("seed-")))


def _member(
    folder: Path, config: CompareConfig, texts: dict[Any, Text], progress: Callable[[str, float], None]
) -> Member:
    import numpy as np

    def evaluating(split: str, share: float) -> None:
        progress(f"evaluating {folder}", share)

    evaluating("val", 0.0)  # loading and compiling come before the first share
    run, stride = babyjax.load_run(folder, config.step), config.stride
    key = (run.tokenizer.to_json(), None if config.text else run.manifest.corpus.sha256)
    if key not in texts:
        texts[key] = _read_text(run, config, progress)
    whole, byte_lengths, longest = texts[key], run.tokenizer.byte_lengths, run.model.max_length
    if stride is not None and longest is not None and stride > longest:
        raise ConfigError(f"stride={stride} is longer than the block of {longest} of {folder}")
    apart = (stride or max(1, longest // 2)) if longest is not None else None
    nats = babyjax.token_nats(run.model, whole.split, byte_lengths, "val", apart, evaluating)
    by_position = None
    if config.picture and longest is not None and longest > 1 and run.config.choices.trainer != "mixing":
        full = babyjax.token_nats(run.model, whole.split, byte_lengths, "val", longest, evaluating)
        full = full[: len(full) // longest * longest]
        by_position = full.reshape(-1, longest).mean(axis=0) if len(full) else None
    return Member(
        folder,
        run.config,
        run.step,
        run.tokenizer,
        run.manifest.corpus.name,
        run.manifest.corpus.sha256,
        run.config.seeded or any(part.seeded for part in run.parts),
        babyjax.Scored(nats, np.asarray(whole.ends[1:]), int(whole.ends[0])),
        by_position,
    )


def _read_text(run: "babyjax.LoadedRun", config: CompareConfig, progress: Callable[[str, float], None]) -> Text:
    """Read and split the text. Raises: RunError if the tokenizer does not say how many bytes its tokens are."""
    corpus = run.read(config.text, progress) if config.text else run.corpus(config.data.path, progress)
    split = babyjax.split_tokens(corpus.encode(run.tokenizer))
    sizes = run.tokenizer.byte_lengths
    start = babyjax.bytes_of(split.train, sizes)
    ends = start + sizes[split.val].cumsum()
    if ends[-1] != corpus.bytes:
        raise RunError(
            f"the tokens of {run.folder} are {int(ends[-1]):,} bytes, but {corpus.name} has {corpus.bytes:,}; losses "
            "per byte of such a tokenizer cannot be compared"
        )
    return Text(corpus, split, ends, start)


def _check_recipe(path: str, side: list[Member]) -> None:
    """Raises: RunError if the runs below one folder differ in more than their seed."""
    first, *others = [member.recipe for member in side]
    for member, other in zip(side[1:], others, strict=True):
        for key in first | other:
            if first.get(key) != other.get(key):
                raise RunError(
                    f"{path} does not hold seeds of one recipe: {key} is {truncated(first.get(key))} in "
                    f"{side[0].folder.name}, {truncated(other.get(key))} in {member.folder.name}"
                )


def _check_texts(sides: list[list[Member]], text: str | None) -> None:
    """Raises: RunError if the runs have other texts, or no part of the text in common."""
    first, *others = [member for side in sides for member in side]
    for member in others:
        if not text and member.sha256 != first.sha256:
            raise RunError(
                f"{first.folder} has the text {first.corpus}, {member.folder} has {member.corpus}; text=FILE compares "
                "both on one text"
            )
    scored = [member.scored for member in (first, *others)]
    if max(each.start for each in scored) >= min(each.ends[-1] for each in scored):
        raise RunError("the validation splits of these runs have no text in common; their tokenizers differ too much")


def _compared(paths: Sequence[str], sides: list[list[Member]], text: Text, config: CompareConfig) -> dict[str, Any]:
    import numpy as np

    members = [member for side in sides for member in side]
    edges = babyjax.common_edges([member.scored for member in members])
    tokenizers = {member.tokenizer.to_json() for member in members}
    same = len(tokenizers) == 1
    first = members[0].scored
    units = np.diff(np.searchsorted(first.ends, edges, side="right")) if same else np.diff(edges)
    unit = "nats per token" if same else "bits per byte"
    scale = 1.0 if same else 1 / math.log(2)
    level = 1 - 0.05 / (len(sides) - 1)
    compared, rows = [], []
    for name, where, side in zip(LETTERS, paths, sides, strict=False):
        nats = np.stack([member.scored.segments(edges) for member in side]) * scale
        compared.append(babyjax.Side(nats, tuple(member.config.train.seed for member in side), side[0].seeded))
        rows.append(_row(name, where, side, nats, units, edges))
    verdicts = []
    for index in range(1, len(sides)):
        recipes = [sides[which][0].recipe for which in (0, index)]
        difference = babyjax.Difference.between(compared[0], compared[index], units)
        verdict = babyjax.judge(
            difference,
            unit,
            names=(LETTERS[0], LETTERS[index]),
            same_recipe=recipes[0] == recipes[1] and compared[0].seeded,
            seeds=min([len(sides[which]) for which in (0, index) if compared[which].seeded], default=1),
            resolution=config.resolution,
            level=level,
        )
        differing = {
            key: [value, recipes[1][key]]
            for key, value in recipes[0].items()
            if key in recipes[1] and value != recipes[1][key]
        }
        for name in {"model", "optimizer"} & set(differing):  # classes, which have names of their own
            differing[name] = [getattr(sides[which][0].config.choices, name) for which in (0, index)]
        verdicts.append(
            {
                "runs": [LETTERS[0], LETTERS[index]],
                "verdict": verdict.words,
                "better": verdict.better,
                "difference": difference.mean,
                "half_width": difference.half_width(level),
                "level": level,
                "standard_error_of_text": difference.of_text,
                "standard_error_of_seeds": difference.of_seeds,
                "paired_by_seed": difference.paired,
                "differing_options": differing,
                **(_where(sides[0], sides[index], text) if same and math.isfinite(difference.mean) else {}),
            }
        )
    result = {
        "corpus": text.corpus.name,
        "unit": unit,
        "tokens": int(units.sum()) if same else None,
        "bytes": int(edges[-1] - edges[0]),
        "segments": len(units),
        "runs": rows,
        "comparisons": verdicts,
    }
    if same and config.text is None:
        ngram = babyjax.ngram_baseline(text.split, members[0].tokenizer.vocab_size)
        result |= {"ngram_order": ngram.order, "ngram": ngram.val}
    return result


def _row(name: str, path: str, side: list[Member], nats: Any, units: Any, edges: Any) -> dict[str, Any]:
    """Return what is known of one side."""
    losses = [float(loss) for loss in nats.sum(axis=1) / units.sum()]
    interval = babyjax.Interval.of(losses)
    total = sum(float(member.scored.segments(edges).sum()) for member in side) / len(side)
    positions = [member.positions for member in side if member.positions is not None]
    return {
        "name": name,
        "run": path,
        "model": side[0].config.choices.model,
        "step": side[0].step,
        "seeds": [member.config.train.seed for member in side],
        "losses": losses,
        "mean": interval.mean,
        "interval": interval.error,
        "bits_per_byte": total / math.log(2) / int(edges[-1] - edges[0]),
        "by_position": [loss.tolist() for loss in positions],
        "curves": [_curve(member.folder, member.step) for member in side],
    }


def _curve(folder: Path, last: int) -> list[tuple[int, float]]:
    """Return the validation losses that a run has recorded, by step; none if its metrics cannot be read."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if '"val_loss"' in line]
        return [(row["step"], row["val_loss"]) for row in rows if row["step"] <= last and row["val_loss"] is not None]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _where(a: list[Member], b: list[Member], text: Text) -> dict[str, Any]:
    """Return the tokens and the places where two sides of one tokenizer differ most, in nats, means over seeds."""
    import numpy as np

    tokenizer, targets = a[0].tokenizer, text.split.val[1:]
    nats = [np.mean([member.scored.nats for member in side], axis=0) for side in (a, b)]
    gap = nats[1] - nats[0]
    total = np.bincount(targets, gap, tokenizer.vocab_size)
    count = np.bincount(targets, minlength=tokenizer.vocab_size)
    tokens = [
        {
            "token": _token_text(tokenizer, int(token)),
            "times": int(count[token]),
            "share": float(total[token] / len(gap)),
        }
        for token in _extremes(total)
        if count[token]
    ]
    places = []
    for place in _extremes(gap):
        before = tokenizer.decode(text.split.val[max(0, place - 39) : place + 1])
        token = _token_text(tokenizer, int(targets[place]))
        places.append({"before": before, "token": token, "nats": [float(each[place]) for each in nats]})
    return {"tokens": tokens, "places": places}


def _extremes(values: Any) -> list[int]:
    """Return where the smallest and the largest values are, each from the outside in."""
    order = values.argsort().tolist()
    return list(dict.fromkeys([*order[:LISTED], *order[: -LISTED - 1 : -1]]))


def main(argv: list[str]) -> None:
    """Compare the runs that the arguments name and print the verdict."""
    paths = [each for each in argv if "/" in each.partition("=")[0] or "=" not in each or Path(each).is_dir()]
    config = read_options(CompareConfig, [argument for argument in argv if argument not in paths])
    picture = user_path(config.picture, BabyjaxError) if config.picture else None
    if picture is not None:
        babyjax.require_picture(picture)
    prepare_jax()
    with babyjax.Screen(stderr=True).status("reading the runs") as update:
        result = compare(paths, config, update)
        if picture is not None:
            update("drawing")
            babyjax.draw_comparison(result, picture)
    print_result(json.dumps(finite_json(result), allow_nan=False) if config.format == "json" else _report(result))


def _report(result: dict[str, Any]) -> str:
    """Return the comparison as text."""
    size = f"{result['tokens']:,} tokens, " if result["tokens"] else ""
    unit = result["unit"].replace(" per ", "/")
    lines = [
        f"on {result['corpus']}: {size}{result['bytes']:,} bytes of the validation split",
        "",
        f"   {unit:>10}  {'95 % (seeds)':>12}  {'bits/byte':>9}  run",
    ]
    for row in result["runs"]:
        interval = "-" if row["interval"] is None else f"+-{row['interval']:.4f}"
        seeds = f", {len(row['seeds'])} seeds" if len(row["seeds"]) > 1 else ""
        lines.append(
            f"{row['name']}  {row['mean']:10.4f}  {interval:>12}  {row['bits_per_byte']:9.4f}  "
            f"{row['run']} ({row['model']}, step {row['step']:,}{seeds})"
        )
    if "ngram" in result:
        lines.append(f"   {result['ngram']:10.4f}  {'-':>12}  {'':9}  a counted {result['ngram_order']}-gram")
    lines.append("")
    for found in result["comparisons"]:
        a, b = found["runs"]
        head = f"{a} and {b}  " if len(result["comparisons"]) > 1 else ""
        lines.append(f"{head}{found['verdict']}")
        if found["standard_error_of_seeds"] is not None and found["standard_error_of_text"] is not None:
            kind = "paired by seed" if found["paired_by_seed"] else "Welch"
            lines.append(
                f"  standard errors: {found['standard_error_of_seeds']:.4f} of the seeds ({kind}), "
                f"{found['standard_error_of_text']:.4f} of the text ({result['segments']} segments)"
            )
        if options := found["differing_options"]:
            lines.append(f"  they differ in {_some(options)}")
        lines += _differences(found)
    return "\n".join(lines)


def _token_text(tokenizer: "babyjax.Tokenizer", token: int) -> str:
    """Return the text of a token, or its word if it is a part of a character."""
    text = tokenizer.decode([token])
    return tokenizer.words[token] if "\ufffd" in text else text


def _some(options: dict[str, Any], most: int = 6) -> str:
    """Return the first of the options that differ, each with its two values."""
    said = [f"{key} ({truncated(ours)}, {truncated(theirs)})" for key, (ours, theirs) in options.items()]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def _differences(found: dict[str, Any]) -> list[str]:
    if "tokens" not in found:
        return []
    a, b = found["runs"]
    lines = []
    for name, sign in ((b, -1), (a, 1)):
        tokens = [token for token in found["tokens"] if round(sign * token["share"], 4) > 0]
        if tokens:
            listed = ", ".join(f"{token['token']!r} {abs(token['share']):.4f}" for token in tokens[:LISTED])
            lines.append(f"  {name} gains most on {listed} nats per token of the text")
    for name, sign in ((b, 1), (a, -1)):
        places: dict[tuple[str, str], list[float]] = {}  # the most extreme of those that look the same
        for place in found["places"]:
            if sign * (place["nats"][0] - place["nats"][1]) > 0:
                places.setdefault((place["token"], place["before"][-30:]), place["nats"])
        for (token, before), nats in list(places.items())[:2]:
            lost = ", ".join(f"{each:.2f}" for each in nats)
            lines.append(f"  {name} knows {token!r} after {before!r} ({a}, {b}: {lost} nats)")
    return lines


if __name__ == "__main__":
    run_command(main, help_text)
