"""`babyjax compare RUN RUN ...`: which of several runs is better, with an interval and a verdict in words."""

import json
from pathlib import Path
from typing import Any, Literal

import babyjax
from babyjax.cli import describe, prepare_jax, print_result, run_command
from babyjax.config import MovedConfig
from babyjax.errors import BabyjaxError
from babyjax.files import finite_json, user_path
from babyjax.options import read_options
from babyjax.schema import Options, option, size
from babyjax.text import truncated

# Tokens that are listed for each run.
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


def main(argv: list[str]) -> None:
    """Compare the runs that the arguments name and print the verdict."""
    paths = [each for each in argv if "/" in each.partition("=")[0] or "=" not in each or Path(each).is_dir()]
    config = read_options(CompareConfig, [argument for argument in argv if argument not in paths])
    picture = user_path(config.picture, BabyjaxError) if config.picture else None
    if picture is not None:
        babyjax.pictures.require_picture(picture)
    prepare_jax()
    with babyjax.Screen(stderr=True).status("reading the runs") as update:
        result = babyjax.compare_runs(
            paths,
            step=config.step,
            text=config.text,
            data_path=config.data.path,
            stride=config.stride,
            resolution=config.resolution,
            by_position=picture is not None,
            progress=update,
        )
        if picture is not None:
            update("drawing")
            babyjax.pictures.draw_comparison(result, picture)
    print_result(json.dumps(finite_json(result), allow_nan=False) if config.format == "json" else _report(result))


def _report(result: dict[str, Any]) -> str:
    """Return the comparison as text."""
    size = f"{result['tokens']:,} tokens, " if result["tokens"] else ""
    unit = result["unit"].replace(" per ", "/")
    by_token = result["unit"] != "bits per byte"  # else the first column has what the third would
    lines = [
        f"on {result['corpus']}: {size}{result['bytes']:,} bytes of the validation split",
        "",
        f"   {unit:>10}  {'95 % (seeds)':>12}  {'bits/byte  ' * by_token}run",
    ]
    for row in result["runs"]:
        interval = "-" if row["interval"] is None else f"+-{row['interval']:.4f}"
        seeds = f", {len(row['seeds'])} seeds" if len(row["seeds"]) > 1 else ""
        in_bytes = f"{row['bits_per_byte']:9.4f}  " * by_token
        lines.append(
            f"{row['name']}  {row['mean']:10.4f}  {interval:>12}  {in_bytes}"
            f"{row['run']} ({row['model']}, step {row['step']:,}{seeds})"
        )
    if "ngram" in result:
        lines.append(f"   {result['ngram']:10.4f}  {'-':>12}  {'':9}  a counted {result['ngram_order']}-gram")
    lines.append("")
    for found in result["comparisons"]:
        a, b = found["runs"]
        head = f"{a} and {b}  " if len(result["comparisons"]) > 1 else ""
        lines.append(f"{head}{found['verdict']}")
        if found["standard_error_of_seeds"] and found["standard_error_of_text"] is not None:  # counting has no seed
            kind = "paired by seed" if found["paired_by_seed"] else "Welch"
            lines.append(
                f"  standard errors: {found['standard_error_of_seeds']:.4f} of the seeds ({kind}), "
                f"{found['standard_error_of_text']:.4f} of the text ({result['segments']} segments)"
            )
        if options := found["differing_options"]:
            lines.append(f"  they differ in {_some(options)}")
        lines += _differences(found)
    return "\n".join(lines)


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
        tokens.sort(key=lambda token: -abs(token["share"]))
        if tokens:
            listed = ", ".join(f"{token['token']!r} {abs(token['share']):.4f}" for token in tokens[:LISTED])
            lines.append(f"  {name} gains most on {listed} nats per token of the text")
    for name, sign in ((b, 1), (a, -1)):
        places: dict[tuple[str, str], list[float]] = {}  # the most extreme of those that look the same
        for place in sorted(found["places"], key=lambda place: -abs(place["nats"][0] - place["nats"][1])):
            if round(sign * (place["nats"][0] - place["nats"][1]), 2) > 0:
                places.setdefault((place["token"], place["before"][-30:]), place["nats"])
        for (token, before), nats in list(places.items())[:2]:
            lost = ", ".join(f"{each:.2f}" for each in nats)
            lines.append(f"  {name} knows {token!r} after {before!r} ({a}, {b}: {lost} nats)")
    return lines


if __name__ == "__main__":
    run_command(main, help_text)
