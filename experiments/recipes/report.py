"""Text of the recipes experiment, from its results."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.record import origin

CHOSEN = ("gpt-tiny", "gpt-small")


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def row(name: str, variant: dict[str, Any]) -> str:
    runs = variant["runs"]
    cells = [
        name,
        f"{runs[0]['parameters']:,}",
        f"{runs[0]['steps']:,}",
        spread([run.get("averaged", run["val"]) for run in runs]),
        str(len(runs)),
        f"{mean(run['seconds'] for run in runs):.0f}",
        f"{mean(run['cpu'] for run in runs):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def text(results: dict[str, Any]) -> str:
    variants = results["variants"]
    head = [
        "| recipe | parameters | steps | loss | seeds | seconds | CPU seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    tried = [row(name, variant) for name, variant in variants.items() if name not in CHOSEN]
    final = [row(name, variants[name]) for name in CHOSEN if name in variants]
    last = max((run["provenance"] for each in variants.values() for run in each["runs"]), key=lambda run: run["date"])
    last = last | {"command": " ".join(last["command"].split()[:4])}  # with the names of variants it measures those
    return "\n".join(
        [
            f"# Recipes for a laptop, on {results['corpus']}",
            "",
            "Losses in nats per token, mean ± standard deviation over the seeds. Seconds are those of training alone;",
            "the machine also did other work in some runs, and those of one day may be of a machine twice as fast as",
            "those of another.",
            "",
            "## Tried, on the last tenth of the training split",
            "",
            *head,
            *tried,
            "",
            "## Chosen, on the validation split",
            "",
            *head,
            *final,
            "",
            origin(last, "jax"),
        ]
    )


def report(results: dict[str, Any], folder: Path) -> None:
    """Write results.md."""
    (folder / "results.md").write_text(text(results) + "\n", encoding="utf-8")
