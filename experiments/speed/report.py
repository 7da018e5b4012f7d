"""The table of all figures, from results.json."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.record import origin

# What a side tells beside its seconds.
REMARKS = {
    "compilation_seconds": "compiled in {:.2f} s",
    "adamw": "AdamW's train loss {:.4f}",
    "steps": "{} steps",
    "train": "train {:.4f}",
    "val": "val {:.4f}",
    "baseline": "count bigram's val {:.4f}",
    "standard_error": "± {:.4f} nats/token",
    "above_entropy": "{:.1e} nats above the entropy",
}


def amount(figure: dict[str, Any], seconds: float) -> str:
    """A time in the unit of a figure: "5,666 steps/s", "50.0 ms/step"."""
    unit, work = figure["unit"], figure["work"]
    if unit.endswith("/s"):
        return f"{work / seconds:,.0f} {unit}"
    value = seconds / work * (1e3 if unit.startswith("ms") else 1)
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def remarks(side: dict[str, Any], seconds: float) -> str:
    """What else is known of our side."""
    known = [form.format(side[key]) for key, form in REMARKS.items() if side.get(key) is not None]
    if "seconds_at_peak" in side:
        known.append(f"{side['tokens'] / seconds:,.0f} tokens/s, MFU {side['seconds_at_peak'] / seconds:.1%}")
    return ", ".join(known)


def rows(figure: dict[str, Any]) -> Iterator[str]:
    """A row for every other side, or one without."""
    ours, *others = figure["sides"]
    seconds = ours["median"]
    start = f"| {figure['title']} | {amount(figure, seconds)} |"
    end = f"| {remarks(ours, seconds)} |"
    for other in others:
        theirs = other["median"]
        target = f" (target {figure['target']:g} x)" if figure["target"] else ""
        shown = f" {other['label']}: {amount(figure, theirs)} | {theirs / seconds:.3g} x{target} "
        yield start + shown + end
    if not others:
        yield f"{start} | {end}"


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    load = " and ".join(f"{load:.1f}" for load in results["load_average"])
    versions = [name for name in ("jax", "torch", "numpy") if name in results["versions"]]
    lines = [
        "Medians over rounds. Each side has a process of its own; they take turns, and the one that waits is stopped. "
        "Warm-up and compilation are not included unless said.",
        "",
        "| what | babyjax | compared with | ratio | remarks |",
        "|---|---:|---|---:|---|",
        *(row for figure in results["figures"] for row in rows(figure)),
        "",
        f"{origin(results, *versions)} Load average {load} before and after.",
    ]
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any], path: Path) -> None:
    """Write the report to a file."""
    path.write_text(text(results), encoding="utf-8")
