"""Text and picture of how far counting gets, from its results."""

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from babyjax.pictures import save_picture
from experiments.record import origin


def over_seeds(losses: list[float]) -> str:
    """Return the mean of the seeds and their range."""
    return f"{mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else f"{losses[0]:.4f}"


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    costs, memory, ensemble = results["costs"], results["memory"], results["mixtures"][0]
    ppmd = ", ".join(f"{nats:.4f} (order {order})" for order, nats in results["ppmd"].items())
    lines = [
        f"# Counting on {results['corpus']}",
        "",
        f"Vocabulary {results['vocab_size']:,}, {results['tokens'][0]:,} training tokens and {results['tokens'][1]:,} "
        "for validation. Losses on the whole validation split, in nats per token.",
        "Interpolated modified Kneser-Ney. Fitted discounts are those with the lowest loss on the last tenth of the "
        "training split. Static: counts of the training split. Adaptive: each token is predicted, then counted; these "
        "are two protocols.",
        "",
        "| order | static, published discounts | static, fitted | adaptive, published | adaptive, fitted |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {row['order']} | {row['static_published']:.4f} | {row['static_fitted']:.4f} "
            f"| {row['adaptive_published']:.4f} | {row['adaptive_fitted']:.4f} |"
            for row in results["orders"]
        ),
        "",
        f"`model.order=auto` chooses {results['chosen_order']} by the last tenth of the training split.",
        f"PPMd, variant I, adaptive: {ppmd}, as the compressed size of the whole text minus that of its first 90 %.",
        "",
        "## Mixed with gpt-tiny-2019",
        "",
        f"{results['steps']:,} steps, {len(results['networks'])} seeds: {over_seeds(results['networks'])}, static. "
        f"Their ensemble, a mixture with global weights: {ensemble['static'][0]:.4f}.",
        "A mixture's weights are fitted on one half of the validation split and judged on the other, both ways. "
        "The weights depend on what the n-gram knows of the context: how much probability is left to shorter ones, how "
        "many different tokens have followed, and its length; or they are global. Mean and range of the seeds.",
        "",
        "| n-gram | alone | with gpt-tiny-2019 | global weights | with the ensemble |",
        "|:---|---:|---:|---:|---:|",
    ]
    for row in results["mixtures"][1:]:
        name = f"{row['order']}-gram, {'fitted' if row['fitted'] else 'published'} discounts"
        lines += [
            f"| {name}, {key} | {row[f'{key}_ngram']:.4f} | {over_seeds(row[key])} "
            f"| {over_seeds(row[f'{key}_global'])} | {row[f'{key}_ensemble']:.4f} |"
            for key in ("static", "adaptive")
        ]
    lines += [
        "",
        "## Costs",
        "",
        f"Of the {costs['order']}-gram, {costs['ngrams']:,} n-grams; medians, compiled before.",
        "",
        "| what | cost |",
        "|:---|---:|",
        f"| count the training split | {costs['count']:.2f} s |",
        f"| choose the order, 1 to 10 | {costs['choose_order']:.2f} s |",
        f"| evaluate the validation split, static | {costs['evaluate_val']:.2f} s |",
        f"| evaluate both splits, static | {costs['evaluate_both']:.2f} s |",
        f"| evaluate the validation split, adaptive | {costs['adaptive_val']:.2f} s |",
        f"| sample one text | {costs['sample_1']:,.0f} tokens/s |",
        f"| sample 16 texts | {costs['sample_16']:,.0f} tokens/s |",
        f"| memory to count {memory['tokens']:,} characters of Python source, order {memory['order']} "
        f"| {memory['bytes'] / memory['tokens']:.0f} bytes per token |",
        f"| time for that, {memory['ngrams']:,} n-grams | {memory['seconds']:.0f} s |",
        "",
        origin(results, "jax", "numpy"),
    ]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the loss of order 3 and more, in both protocols."""
    rows = results["orders"][2:]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    orders = [row["order"] for row in rows]
    for key, style, label in (
        ("static_published", "o-", "static, published discounts"),
        ("static_fitted", "o--", "static, fitted discounts"),
        ("adaptive_published", "s-", "adaptive, published discounts"),
        ("adaptive_fitted", "s--", "adaptive, fitted discounts"),
    ):
        axes.plot(orders, [row[key] for row in rows], style, label=label)
    axes.axhline(mean(results["networks"]), color="grey", lw=1, ls=":", label="gpt-tiny-2019, static")
    axes.axhline(min(results["ppmd"].values()), color="black", lw=1, ls=":", label="PPMd, adaptive")
    axes.set(
        xlabel="order: tokens of the longest n-grams",
        ylabel="validation loss (nats per token)",
        title=f"Counting on {results['corpus']}: two protocols",
    )
    axes.set_xticks(orders)
    axes.grid(alpha=0.3)
    axes.legend()
    save_picture(figure, path)


def report(results: dict[str, Any], folder: Path) -> None:
    """Write results.md and ngram.svg."""
    (folder / "results.md").write_text(text(results), encoding="utf-8")
    draw(results, folder / "ngram.svg")
