"""The pictures of the report as SVG, each for light and dark pages.

Characters stay text: the reader's fonts draw them, so no Chinese font is needed here. Needs matplotlib, the `report`
extra.
"""

import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

Results = dict[str, Any]
Draw = Callable[[Results, Figure], None]

PAPER, INK, GRID = "#ffffff", "#1f2328", "#d0d7de"
DARK = {PAPER: "#15191e", INK: "#e6edf3", GRID: "#3d444d"}
UNSEEN = "#8c8c8c"  # a pair that does not occur
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
MARKS = "os^Dv"
VISIBLE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\u3000": "\u2423"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "babyjax",
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": GRID,
    "grid.alpha": 0.4,
    "legend.framealpha": 0.6,
    "legend.fontsize": 8,
}


def visible(character: str) -> str:
    """Return a character as it is written on an axis."""
    if character in VISIBLE:
        return VISIBLE[character]
    return character if character.isprintable() and character.strip() else f"U+{ord(character[0]):04X}"


def matrix(name: str, results: Results, figure: Figure) -> None:
    shown, likely = results["matrices"], {"vmin": -10, "vmax": 0}
    counts = np.ma.masked_equal(np.array(shown["counts"], float), 0)
    bigram, babygpt = np.ma.log(counts) - np.log(np.maximum(shown["totals"], 1))[:, None], np.array(shown["babygpt"])
    table, title, unit, colors, scale = {
        "counts": (counts, "Pair counts", "occurrences", "viridis", {"norm": LogNorm(1, max(2, counts.max()))}),
        "bigram": (bigram, "Count bigram", "log-probability (nats)", "viridis", likely),
        "babygpt": (babygpt, "BabyGPT, AdamW", "log-probability (nats)", "viridis", likely),
        "difference": (
            babygpt - bigram,
            "BabyGPT minus bigram",
            "difference (nats)",
            "RdBu_r",
            {"vmin": -3, "vmax": 3},
        ),
    }[name]
    figure.set_size_inches(6.4, 5.8)
    axes = figure.subplots()
    figure.set_layout_engine("constrained", w_pad=0.12)  # otherwise a square matrix pushes its labels out
    image = axes.imshow(table, cmap=matplotlib.colormaps[colors].with_extremes(bad=UNSEEN), **scale)
    names = [visible(character) for character in shown["characters"]]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(title=title, xlabel="next character", ylabel="character")
    figure.colorbar(image, label=unit, fraction=0.046, pad=0.03)


def embedding(results: Results, figure: Figure) -> None:
    figure.set_size_inches(7.2, 6.2)
    axes, matrices = figure.subplots(), results["matrices"]
    places = np.array(matrices["embedding"])
    sizes = 10 + 8 * np.sqrt(np.array(matrices["frequency"]) / max(matrices["frequency"]))
    axes.scatter(*places.T, s=1, color=GRID)
    for character, place, size in zip(matrices["characters"], places, sizes, strict=True):
        axes.annotate(visible(character), place, ha="center", va="center", fontsize=size, color=_kind(character))
    axes.set(
        title=f"BabyGPT's embedding: two principal axes, {matrices['embedding_share']:.0%} of the variance",
        xlabel="first axis, weighted by frequency",
        ylabel="second axis",
    )
    axes.grid()


def _kind(character: str) -> str:
    """Return a color for vowels, other lowercase letters, other letters, and the rest."""
    if character in "aeiou":
        return COLORS[1]
    return COLORS[0] if character.islower() else COLORS[2] if character.isalpha() else COLORS[3]


def loss(results: Results, figure: Figure) -> None:
    axes, entropy = figure.subplots(), results["corpus"]["entropy"]
    for (name, curve), color, mark in zip(results["training"]["curves"].items(), COLORS, MARKS, strict=False):
        axes.plot(curve["seconds"], curve["train"], f"{mark}-", ms=4, color=color, label=name)
    axes.axhline(entropy, color=INK, lw=1, ls="--", label=f"entropy, {entropy:.4f}")
    axes.set(
        xscale="log",
        xlabel="seconds of training",
        ylabel="training loss (nats per token)",
        title="Loss against time",
        ylim=(entropy - 0.02, entropy + 0.5 if entropy < 4 else entropy + 3),
    )
    axes.grid()
    axes.legend()


def widths(results: Results, figure: Figure) -> None:
    axes, found = figure.subplots(), results["expressiveness"]
    axes.plot(found["n_embd"], np.maximum(found["gap"], 1e-9), "o-", color=COLORS[0], label="best fit found on counts")
    axes.axhline(1e-3, color=INK, lw=1, ls="--", label="0.001 nats")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="n_embd, the embedding width",
        ylabel="training loss above the entropy (nats)",
        title=f"What a narrow embedding costs, V = {results['corpus']['vocab_size']:,}",
    )
    axes.set_xticks(found["n_embd"], [str(width) for width in found["n_embd"]])
    axes.minorticks_off()
    axes.grid()
    axes.legend()


def cost(group: str, results: Results, figure: Figure) -> None:
    figure.set_size_inches(7.2, 7.2)
    figure.suptitle({"forward": "Cost of a forward pass", "training": "Cost of a training step"}[group])
    subjects = {name: each for name, each in results["scaling"].items() if each["group"] == group}
    names = {"B": "batch size", "T": "block size", "V": "vocabulary size", "D": "n_embd"}
    for axes, (axis, size) in zip(figure.subplots(2, 2, sharey=True).flat, names.items(), strict=True):
        for (name, subject), color, mark in zip(subjects.items(), COLORS, MARKS, strict=False):
            if not (measured := subject["axes"].get(axis)):
                continue
            sizes, seconds = np.array(measured["sizes"]), measured["seconds"]
            label = f"{name}: {measured['exponents']['seconds']:.2f}"
            if (claimed := subject["claimed"].get(axis)) is not None:
                label += f", claimed {claimed}"
                axes.plot(sizes, seconds[-1] * (sizes / sizes[-1]) ** claimed, ":", lw=1, color=color)
            axes.plot(sizes, seconds, f"{mark}-", ms=4, color=color, label=label)
        axes.set(yscale="log", xlabel=f"{axis}, {size}", ylabel="seconds" if axis in "BV" else "")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid()
        axes.margins(y=0.3)
        axes.legend(fontsize=7)


PICTURES: dict[str, Draw] = {
    **{name: partial(matrix, name) for name in ("counts", "bigram", "babygpt", "difference")},
    **{"embedding": embedding, "loss": loss, "widths": widths},
    **{group: partial(cost, group) for group in ("forward", "training")},
}


def draw_all(results: Results) -> dict[str, str]:
    """Draw every picture. Returns file names and SVG."""
    return {f"{name}.svg": _svg(draw, results) for name, draw in PICTURES.items()}


def _svg(draw: Draw, results: Results) -> str:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # matters to outlines, not to text
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        draw(results, figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    rules = "".join(
        f' [style*="{part}: {light}"] {{ {part}: {dark} !important }}\n'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    dark_style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n"
    return written.getvalue().replace(" <metadata>", f" {dark_style} <metadata>", 1)
