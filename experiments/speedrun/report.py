"""Text of the speedrun, from its results."""

from pathlib import Path

from experiments.race import ending, table
from experiments.record import Results

GOAL = 1.4697


def text(results: Results) -> str:
    """Return the report as Markdown."""
    entries = results["entries"]
    reached = {
        name: [run["seconds"] for run in entry["runs"]]
        for name, entry in entries.items()
        if all(run["static"] <= GOAL for run in entry["runs"])
    }
    verdicts = [
        f"- {name}: all {len(seconds)} seeds reach {GOAL}, after at most {max(seconds):.0f} seconds."
        for name, seconds in reached.items()
    ] + [
        f"- {name}: {sum(run['static'] <= GOAL for run in entry['runs'])} of {len(entry['runs'])} seeds reach {GOAL}."
        for name, entry in entries.items()
        if name not in reached
    ]
    return "\n".join(
        [
            f"# Seconds to {GOAL} on {results['corpus']}",
            "",
            f"nanoGPT publishes a validation loss of {GOAL} for its character model of 10.65M parameters after about",
            "three minutes of an A100. That is an estimate from random batches of 256 characters. Here every character",
            "of the validation split but its first is scored once, with stride 32. These are not the same measurement:",
            "random batches give a character less context on average, and they have a sampling error.",
            "",
            "The clock runs from the start of the first command to the end of the last, evaluation included; the cache",
            "of compiled programs is empty. Nats per character, mean ± 95 % interval over seeds. A mixture's weights",
            "are cross-fitted.",
            "",
            *verdicts,
            "",
            *table(results, "static", float("inf")),
            "",
            *ending(results),
        ]
    )


def report(results: Results, folder: Path) -> None:
    """Write results.md."""
    (folder / "results.md").write_text(text(results) + "\n", encoding="utf-8")
