"""Text and picture of the scaling experiment, from its results."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from babyjax.evaluation.comparison import Interval
from babyjax.pictures import save_picture
from experiments.record import Results, origin


def shown(values: Sequence[float], digits: int = 4) -> str:
    """Return a mean over seeds and half of its 95 % interval."""
    interval = Interval.of(values)
    return f"{interval.mean:.{digits}f} ± {interval.error:.{digits}f}"


def excesses(results: Results, **where: int) -> list[list[float]]:
    """Return the excess of the networks that have these sizes, for each of them by seed."""
    chosen = [
        [row["excess"] for row in run["networks"] if all(row[key] == value for key, value in where.items())]
        for run in results["runs"]
    ]
    return [list(by_seed) for by_seed in zip(*chosen, strict=True)]


def text(results: Results) -> str:
    """Return the report as Markdown."""
    runs = results["runs"]
    first = runs[0]["networks"]
    sizes = dict.fromkeys((row["width"], row["parameters"]) for row in first)
    tokens = list(dict.fromkeys(row["tokens"] for row in first))
    fits = {key: [run["fit"][key] for run in runs] for key in runs[0]["fit"]}
    counted = [[run["ngrams"][index] for run in runs] for index in range(len(tokens))]
    lines = [
        "# Scaling with a known floor",
        "",
        f"Markov sources of order {results['order']} with {results['states']} states (`data=synthetic`): "
        f"{results['states'] ** results['order']:,} contexts,",
        f"entropy {shown([run['entropy_rate'] for run in runs])} nats per token. Networks: gpt-tiny's architecture and "
        "recipe with 2 layers,",
        f"other widths, and blocks of {results['block_size']}; its learning rate was tuned for none of them. Excess: "
        "the loss on validation",
        f"tokens minus what the source itself loses on them, in nats per token. {len(runs)} seeds, each",
        "of which draws a source, a text and a network; mean ± half a 95 % interval.",
        "",
        "| parameters | " + " | ".join(f"{count:,} tokens" for count in tokens) + " |",
        "|---:|" + "---:|" * len(tokens),
    ]
    for width, parameters in sizes:
        cells = " | ".join(shown(values) for values in excesses(results, width=width))
        lines.append(f"| {parameters:,} (width {width}) | {cells} |")
    cells = " | ".join(shown([row["excess"] for row in rows]) for rows in counted)
    orders = ", ".join("/".join(sorted({str(row["order"]) for row in rows})) for rows in counted)
    lines += [
        f"| counted n-gram | {cells} |",
        "",
        f"The n-gram's order is chosen on held-out training tokens: {orders}.",
        "",
        "| excess = A / N^α + B / D^β, N parameters, D tokens | floor known | floor fitted too |",
        "|:---|---:|---:|",
        f"| α | {shown(fits['alpha'], 3)} | {shown(fits['alpha_free'], 3)} |",
        f"| β | {shown(fits['beta'], 3)} | {shown(fits['beta_free'], 3)} |",
        f"| fitted floor minus the entropy, nats per token | 0 | {shown(fits['floor_error'])} |",
        "",
        f"With the known floor the fit misses the logarithm of the excess by {shown(fits['residual'], 3)} (root mean "
        "square), so",
        "sums of powers describe these networks roughly. A fit that has to find the floor too puts the misfit in it.",
        f"The n-gram's excess falls as D^-β with β = {shown([run['ngram_beta'] for run in runs], 3)}; a table "
        "that has seen every context often has β = 1.",
        "",
        origin(results, "jax"),
    ]
    return "\n".join(lines) + "\n"


def draw(results: Results, path: Path) -> None:
    """Draw the excess by tokens, a line per width, and by parameters, a line per number of tokens."""
    first = results["runs"][0]["networks"]
    widths = dict.fromkeys(row["width"] for row in first)
    tokens = list(dict.fromkeys(row["tokens"] for row in first))
    parameters = {row["width"]: row["parameters"] for row in first}
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for width in widths:
        intervals = [Interval.of(values) for values in excesses(results, width=width)]
        label = f"{parameters[width]:,} parameters"
        left.errorbar(tokens, [i.mean for i in intervals], [i.error for i in intervals], label=label, marker="o", ms=3)
    counted = [Interval.of([run["ngrams"][i]["excess"] for run in results["runs"]]) for i in range(len(tokens))]
    left.errorbar(
        tokens, [i.mean for i in counted], [i.error for i in counted], label="counted n-gram", color="dimgrey", ls="--"
    )
    for count in tokens:
        intervals = [Interval.of(values) for values in excesses(results, tokens=count)]
        sizes = [parameters[width] for width in widths]
        label = f"{count / 1e6:.2g}M tokens"
        right.errorbar(sizes, [i.mean for i in intervals], [i.error for i in intervals], label=label, marker="o", ms=3)
    for axes, name in ((left, "training tokens"), (right, "parameters")):
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    left.set_ylim(bottom=2e-4)  # room for the legend below the n-gram
    left.set_ylabel("loss above the source's (nats per token)")
    figure.suptitle(f"Excess loss on Markov sources of order {results['order']}, 95 % intervals")
    save_picture(figure, path)


def report(results: Results, folder: Path) -> None:
    """Write results.md and scaling.svg."""
    (folder / "results.md").write_text(text(results), encoding="utf-8")
    draw(results, folder / "scaling.svg")
