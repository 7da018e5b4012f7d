"""Text and picture of the ladder, from its results."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.pictures import save_svg
from experiments.record import origin


def short(rung: str) -> str:
    """Return "v3 attention" for "babygpt-v3-attention"."""
    return rung.removeprefix("babygpt").lstrip("-").replace("-", " ", 1) or "v1"


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows, ngrams = results["rungs"], results["ngrams"]
    best, last = min(rows, key=lambda row: row["val"]), rows[-1]
    worse = [short(row["rung"]) for before, row in pairwise(rows) if row["val"] > before["val"]]
    rates = ", ".join(rows[0]["val_at_rates"])
    lines = [
        f"# The ladder on {results['corpus']}",
        "",
        f"Vocabulary {results['vocab_size']:,}. Each rung: {results['steps']:,} steps of 32 x 8 tokens, AdamW at a "
        f"constant learning rate ({rates}; the best is shown), one seed ({results['seed']}).",
        "Validation loss in nats per token. The learning rate is chosen on the same validation split.",
        "",
        f"From v1 to the best rung, {short(best['rung'])}, the loss falls from {rows[0]['val']:.4f} to "
        f"{best['val']:.4f}. The last rung, {short(last['rung'])}, has {last['val']:.4f}.",
        f"Rungs with a higher loss than the one before: {', '.join(worse) or 'none'}.",
        "With one seed, small differences between rungs say little.",
        "",
        "| rung | parameters | validation loss | learning rate |",
        "|:---|---:|---:|---:|",
        *(
            f"| {row['rung']} | {row['parameters']:,} | {row['val']:.4f} | {row['learning_rate']} |"
            for row in results["rungs"]
        ),
        "",
        "Counted n-grams (interpolated modified Kneser-Ney):",
        "",
        "| order | context tokens | validation loss |",
        "|---:|---:|---:|",
        *(f"| {order} | {int(order) - 1} | {nats:.4f} |" for order, nats in ngrams.items()),
        "",
        origin(results, "jax"),
    ]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the rungs as points and the n-grams as lines across."""
    rows = results["rungs"]
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    label = f"BabyGPT, {results['steps']:,} steps per rung, best of three learning rates"
    axes.plot(range(len(rows)), [row["val"] for row in rows], "o-", label=label)
    for order, nats in results["ngrams"].items():
        if 2 <= int(order) <= 6:
            axes.axhline(nats, color="grey", lw=1, ls="--")
            axes.annotate(
                f"counted {order}-gram: {nats:.3f}",
                (len(rows) - 1, nats),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color="dimgrey",
                fontsize=8,
            )
    axes.set_xticks(range(len(rows)), [short(row["rung"]).replace(" ", "\n") for row in rows], fontsize=8, rotation=45)
    axes.set(ylabel="validation loss (nats per token)", title=f"The ladder on {results['corpus']}, one seed")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))  # between the lines of the 2- and 3-gram
    save_svg(figure, path)


def report(results: dict[str, Any], folder: Path) -> None:
    """Write results.md and ladder.svg."""
    (folder / "results.md").write_text(text(results), encoding="utf-8")
    draw(results, folder / "ladder.svg")
