"""Text and picture of the rank frontier, from its results."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from babyjax.pictures import save_picture
from experiments.record import beside, origin


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Embedding width of BabyGPT v1 on {results['corpus']}",
        "",
        f"Vocabulary {results['vocab_size']}; losses in nats per token. Bigram entropy of the training split "
        f"{results['entropy']:.5f}, mutual information of neighboring tokens {results['mutual_information']:.4f}.",
        "",
        "The gap is the lowest exact training loss found, less the entropy: the best of the restarts given, continued "
        "until a step is predicted to gain less than 1e-12 nats.",
        "It is an upper bound on the cost of the width. A default `trainer=counts` run stops earlier, at 1e-6 nats, so "
        "its gap can be larger.",
        "The share is the gap over the mutual information, which is all that a model of one previous token can gain.",
        "The validation loss is that of the network with the gap beside it; nothing holds it back from overfitting. "
        "AdamW is v1's recipe, 5,000 steps, one seed.",
        beside(results["counted"]),
        "",
        "| n_embd | gap | share | restarts | validation loss | AdamW: gap | AdamW: validation loss |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['n_embd']} | {row['gap']:.2g} | {row['share_of_information']:.2%} | {row['starts']} "
            f"| {row['val']:.4f} | {row['adamw']['train'] - results['entropy']:.4f} | {row['adamw']['val']:.4f} |"
        )
    return "\n".join([*lines, "", origin(results, "jax")]) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the gap against the width, of the best network found and of AdamW's."""
    rows, entropy, vocab_size = results["rows"], results["entropy"], results["vocab_size"]
    widths = [row["n_embd"] for row in rows]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(widths, [row["gap"] for row in rows], "o-", ms=4, label="lowest loss found, trained on pair counts")
    axes.semilogy(
        widths, [row["adamw"]["train"] - entropy for row in rows], "s-", ms=4, label="AdamW, v1's recipe of 5,000 steps"
    )
    axes.set(
        xlabel="embedding width (n_embd)",
        ylabel="loss above the entropy (nats per token)",
        title=f"Training loss of BabyGPT v1 by embedding width, {results['corpus']}",
        ylim=(3e-11, 2),
    )
    axes.axvline(vocab_size, color="grey", lw=1, ls=":")
    axes.annotate(
        f"V = {vocab_size}", (vocab_size, 0.3), ha="right", xytext=(-4, 0), textcoords="offset points", color="dimgrey"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_picture(figure, path)


def report(results: dict[str, Any], folder: Path) -> None:
    """Write results.md and frontier.svg."""
    (folder / "results.md").write_text(text(results), encoding="utf-8")
    draw(results, folder / "frontier.svg")
