"""Text of the five-minute race, from its results."""

from pathlib import Path

from experiments.race import ending, table
from experiments.record import Results

SECONDS = 300


def text(results: Results) -> str:
    """Return the report as Markdown."""
    load = max(run["load_before"] for entry in results["entries"].values() for run in entry["runs"])
    return "\n".join(
        [
            f"# Five minutes of two CPU cores on {results['corpus']}",
            "",
            "Nats per character of the last tenth of the text, mean ± 95 % interval over seeds. Rules:",
            "",
            f"1. {SECONDS} seconds of wall time on two CPU cores, from the start of the first command to the end of",
            "   the last: start-up, compilation with an empty cache, counting, training and evaluation.",
            "2. Learn from the first 90 % of the text only. Score every character of the rest but its first, once.",
            "3. Networks are evaluated with stride 32: past the first block, every character has a context of at least",
            "   block - 31 characters.",
            "4. Static and adaptive losses are two races. Adaptive models may count a character after predicting it.",
            "5. Three seeds, unless the entry has none. Nothing is chosen on the reported text: recipes were chosen on",
            "   the last tenth of the training split ([recipes](../recipes/results.md)), and a mixture's weights are",
            "   cross-fitted: each half of the text is scored with weights fitted to the other half.",
            "6. The runs are verified after the clock (`babyjax evaluate verify=true`).",
            "",
            "To take part, add an entry to `ENTRIES` in [`__main__.py`](__main__.py); its commands may be any.",
            "",
            "## Static",
            "",
            *table(results, "static", SECONDS),
            "",
            "## Adaptive",
            "",
            *table(results, "adaptive", SECONDS),
            "",
            f"Load of the machine before a run: at most {load:.1f}.",
            "",
            *ending(results),
        ]
    )


def report(results: Results, folder: Path) -> None:
    """Write results.md."""
    (folder / "results.md").write_text(text(results) + "\n", encoding="utf-8")
