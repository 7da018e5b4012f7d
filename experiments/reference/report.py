"""Text and picture of the reference curves, from their results."""

from pathlib import Path

from matplotlib.figure import Figure

from babyjax.pictures import save_picture
from experiments.record import Results, origin


def short(rung: str) -> str:
    """Return "v3 attention" for "babygpt-v3-attention"."""
    return rung.removeprefix("babygpt").lstrip("-").replace("-", " ", 1) or "v1" if "babygpt" in rung else rung


def verdict_of(name: str, row: Results) -> str:
    """Return the verdict of the comparison of a rung with the one below it."""
    if "below" not in row:
        return ""
    said = {None: "not distinguishable from", "A": "worse than", "B": "better than"}[row["better"]]
    amount = f": {row['difference']:+.4f} ± {row['half_width']:.4f}" if row["half_width"] is not None else ""
    return f"{said} {short(row['below'])}{amount}"


def section(name: str, results: Results) -> list[str]:
    """Return the part about one corpus."""
    rungs, ngrams = results["rungs"], results["ngrams"]
    better = [short(rung) for rung, row in rungs.items() if row.get("better") == "B"]
    worse = [short(rung) for rung, row in rungs.items() if row.get("better") == "A"]
    same = [short(rung) for rung, row in rungs.items() if "below" in row and row["better"] is None]
    order = min(ngrams, key=ngrams.__getitem__)
    edges = [
        short(rung)
        for rung, row in rungs.items()
        if row["rates"] and row["rate"] in (min(row["rates"], key=float), max(row["rates"], key=float))
    ]
    again = [
        short(rung)
        for rung, row in rungs.items()
        if "below" in row and abs(row["mean"] - rungs[row["below"]]["mean"] - row["difference"]) > 1e-6
    ]
    lines = [
        f"## {name}",
        "",
        f"Vocabulary {results['vocab_size']:,}. Each network learns from {results['tokens']:,} tokens, "
        f"{results['seeds']} seeds.",
        "",
        f"- Better than the rung below: {', '.join(better) or 'none'}.",
        f"- Worse: {', '.join(worse) or 'none'}.",
        f"- Not distinguishable: {', '.join(same) or 'none'}.",
        f"- The best counted n-gram has order {order} and {ngrams[order]:.4f}.",
        f"- The chosen learning rate is the largest or smallest that was tried: {', '.join(edges) or 'none'}.",
        f"- Verified (`evaluate verify=true`, the first seed): {sum(row['verified'] for row in rungs.values())} of "
        f"{len(rungs)} rungs passed.",
        *(
            [f"- Compared with the rung below before it was trained again, so by other runs: {', '.join(again)}."]
            if again
            else []
        ),
        "",
        "| rung | parameters | steps x batch x block | rate | nats per token | bits per byte | and the rung below |",
        "|:---|---:|---:|---:|---:|---:|:---|",
    ]
    for rung, row in rungs.items():
        size = f"{row['parameters']:,} | {' x '.join(f'{size:,}' for size in row['batch'])}" if row["rates"] else " | "
        interval = f" ± {row['interval']:.4f}" if row["interval"] is not None else ""
        lines.append(
            f"| {rung} | {size} | {row.get('rate', '')} | {row['mean']:.4f}{interval} | {row['bits_per_byte']:.4f} | "
            f"{verdict_of(rung, row)} |"
        )
    counted = ", ".join(f"{loss:.4f} ({order})" for order, loss in ngrams.items())
    return [*lines, "", f"Counted n-grams (interpolated modified Kneser-Ney), by order: {counted}.", ""]


def text(results: Results) -> str:
    """Return the report as Markdown."""
    rows = [row for corpus in results.values() for row in corpus["rungs"].values() if "provenance" in row]
    commands = dict.fromkeys(f"{origin(row['provenance'], 'jax')}\n" for row in rows)
    return "\n".join(
        [
            "# Reference losses of the ladder",
            "",
            "Every rung learns from the same number of tokens. Its learning rate is the best of three for the last",
            "tenth of the training split (`babyjax sweep`); the validation split takes no part in the choice. Losses",
            "are means over seeds ± half a 95 % interval for new seeds, on every token of the validation split but its",
            "first. A network of block T predicts from the last T / 2 to T tokens.",
            "",
            "The last column is the verdict of `babyjax compare`: the difference to the row above, with a 95 %",
            "interval over text and seeds. Each interval holds for itself, not all of them together.",
            "",
            "v11 and v12 (10.8 million parameters) are left out: such a budget is too small for them.",
            "",
            *(line for name, corpus in results.items() for line in section(name, corpus)),
            *commands,
        ]
    ).rstrip()


def draw(name: str, results: Results, path: Path) -> None:
    """Draw the rungs as points with their seeds, and the n-grams as lines across."""
    rungs, ngrams = results["rungs"], results["ngrams"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rungs.values()):
        axes.plot([index] * len(row["losses"]), row["losses"], "_", color="tab:blue", ms=9, alpha=0.6)
    label = f"{results['tokens'] / 1e6:.2f}M tokens per rung, mean of {results['seeds']} seeds (dashes)"
    axes.plot(range(len(rungs)), [row["mean"] for row in rungs.values()], "o-", ms=4, color="tab:blue", label=label)
    best = min(ngrams, key=ngrams.__getitem__)
    means = [row["mean"] for row in rungs.values()]
    apart, drawn = 0.05 * (max(means) - ngrams[best]), []
    for order in sorted({"2", "3", "4", best} & set(ngrams), key=ngrams.__getitem__):
        if all(ngrams[order] - below > apart for below in drawn):  # or their labels would overlap
            drawn.append(ngrams[order])
            axes.axhline(ngrams[order], color="grey", lw=1, ls="--")
            axes.annotate(
                f"counted {order}-gram: {ngrams[order]:.3f}",
                (0, ngrams[order]),
                xytext=(0, -10),
                textcoords="offset points",
                color="dimgrey",
                fontsize=8,
            )
    axes.set_ylim(ngrams[best] - 1.5 * apart)
    labels = [short(rung).replace("gpt-tiny-", "gpt-tiny\n").replace(" ", "\n") for rung in rungs]
    axes.set_xticks(range(len(rungs)), labels, fontsize=8, rotation=60)
    axes.set(ylabel="validation loss (nats per token)", title=f"The ladder on {name}")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper right")
    save_picture(figure, path)


def report(results: Results, folder: Path) -> None:
    """Write results.md, and a picture of each corpus."""
    (folder / "results.md").write_text(text(results) + "\n", encoding="utf-8")
    for name, corpus in results.items():
        draw(name, corpus, folder / f"{name}.svg")
