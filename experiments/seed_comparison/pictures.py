"""The pictures of the report, each once for a light and once for a dark page, as SVG.

Characters stay text: the reader's own fonts draw them, so Chinese needs none here.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

Results = dict[str, Any]

BLANK = "#8c8c8c"  # a pair never seen
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "grid": "#d0d7de", "matrix": "viridis", "difference": "RdBu_r"}
DARK = {"paper": "#15191e", "ink": "#e6edf3", "grid": "#3d444d", "matrix": "viridis", "difference": "RdBu_r"}
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c"]
MARKS = "os^Dvp*"
VISIBLE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\u3000": "\u2423"}


def visible(character: str) -> str:
    """A character as it is written on an axis."""
    if character in VISIBLE:
        return VISIBLE[character]
    return character if character.isprintable() and character.strip() else f"U+{ord(character[0]):04X}"


def counts(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    table = np.array(results["matrices"]["counts"], float)
    table = np.ma.masked_equal(table, 0)
    _matrix(results, figure, table, "Pairs counted", "pairs", theme["matrix"], norm=LogNorm(1, max(2, table.max())))


def bigram(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    table = _log_frequencies(results)
    _matrix(results, figure, table, "Count bigram", "log-probability (nats)", theme["matrix"], vmin=-10, vmax=0)


def babygpt(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    table = np.array(results["matrices"]["babygpt"])
    _matrix(results, figure, table, "BabyGPT, learned", "log-probability (nats)", theme["matrix"], vmin=-10, vmax=0)


def difference(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    table = np.array(results["matrices"]["babygpt"]) - _log_frequencies(results)
    title = "BabyGPT less bigram"
    _matrix(results, figure, table, title, "difference (nats)", theme["difference"], vmin=-3, vmax=3)


def _log_frequencies(results: Results) -> Any:
    matrices = results["matrices"]
    return np.ma.log(np.array(matrices["counts"], float)) - np.log(np.maximum(matrices["totals"], 1))[:, None]


def _matrix(results: Results, figure: Figure, table: Any, title: str, unit: str, colours: str, **scale: Any) -> None:
    figure.set_size_inches(6.4, 5.8)
    axes = figure.subplots()
    figure.set_layout_engine("constrained", w_pad=0.12)  # a square matrix else pushes its labels out
    image = axes.imshow(table, cmap=matplotlib.colormaps[colours].with_extremes(bad=BLANK), **scale)
    names = [visible(character) for character in results["matrices"]["characters"]]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(title=title, xlabel="next character", ylabel="character")
    figure.colorbar(image, label=unit, fraction=0.046, pad=0.03)


def embedding(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    figure.set_size_inches(7.2, 6.2)
    axes, matrices = figure.subplots(), results["matrices"]
    x, y = np.array(matrices["embedding"]).T
    size = 10 + 8 * np.sqrt(np.array(matrices["frequency"]) / max(matrices["frequency"]))
    axes.scatter(x, y, s=1, color=theme["grid"])
    for character, place, points in zip(matrices["characters"], zip(x, y, strict=True), size, strict=True):
        axes.annotate(visible(character), place, ha="center", va="center", fontsize=points, color=_kind(character))
    share = matrices["embedding_share"]
    axes.set(
        title=f"BabyGPT's embedding: the plane that holds {share:.0%} of its variance",
        xlabel="first principal axis, weighted by frequency",
        ylabel="second",
    )
    axes.grid(alpha=0.4)


def _kind(character: str) -> str:
    """A colour for vowels and other small letters, capitals, and the rest."""
    if character in "aeiou":
        return COLOURS[1]
    return COLOURS[0] if character.islower() else COLOURS[2] if character.isalpha() else COLOURS[3]


def loss_over_time(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    axes = figure.subplots()
    for (name, curve), colour, mark in zip(results["training"]["curves"].items(), COLOURS, MARKS, strict=False):
        axes.plot(curve["seconds"], curve["train"], f"{mark}-", ms=4, color=colour, label=name)
    entropy = results["corpus"]["entropy"]
    axes.axhline(entropy, color=theme["ink"], lw=1, ls="--", label=f"floor: entropy, {entropy:.4f}")
    axes.set(
        xscale="log",
        xlabel="seconds of training",
        ylabel="training loss (nats per token)",
        title="Loss against time",
        ylim=(entropy - 0.02, entropy + 0.5 if entropy < 4 else entropy + 3),
    )
    axes.grid(alpha=0.4)
    axes.legend(fontsize=8)


def widths(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    axes, found = figure.subplots(), results["expressiveness"]
    axes.plot(found["n_embd"], np.maximum(found["gap"], 1e-9), "o-", color=COLOURS[0], label="best found, on counts")
    axes.axhline(1e-3, color=theme["ink"], lw=1, ls="--", label="0.001 nats")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="width of the embedding, n_embd",
        ylabel="training loss above the entropy (nats)",
        title=f"What a narrow embedding loses, V = {results['corpus']['vocab_size']:,}",
    )
    axes.set_xticks(found["n_embd"], [str(width) for width in found["n_embd"]])
    axes.minorticks_off()
    axes.grid(alpha=0.4)
    axes.legend(fontsize=8)


def forward_cost(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    _cost(results, figure, "forward", "Cost of a forward pass")


def training_cost(results: Results, figure: Figure, theme: dict[str, str]) -> None:
    _cost(results, figure, "training", "Cost of a training step")


def _cost(results: Results, figure: Figure, group: str, title: str) -> None:
    figure.set_size_inches(7.2, 7.2)
    figure.suptitle(title)
    for axes, axis in zip(figure.subplots(2, 2, sharey=True).flat, "BTVD", strict=True):
        subjects = {name: each for name, each in results["scaling"].items() if each["group"] == group}
        for (name, subject), colour, mark in zip(subjects.items(), COLOURS, MARKS, strict=False):
            if axis in subject["axes"]:
                _cost_lines(axes, name, subject, axis, colour, mark)
        what = {"B": "batch size", "T": "block size", "V": "vocabulary size", "D": "n_embd"}[axis]
        axes.set(yscale="log", xlabel=f"{axis}, {what}", ylabel="seconds" if axis in "BV" else "")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.4)
        axes.margins(y=0.3)
        axes.legend(fontsize=7)


def _cost_lines(axes: Axes, name: str, subject: dict[str, Any], axis: str, colour: str, mark: str) -> None:
    measured = subject["axes"][axis]
    sizes, seconds = np.array(measured["sizes"]), measured["seconds"]
    claimed = subject["claimed"].get(axis)
    said = "" if claimed is None else f", claimed {claimed}"
    axes.plot(
        sizes, seconds, f"{mark}-", ms=4, color=colour, label=f"{name}: {measured['exponents']['seconds']:.2f}{said}"
    )
    if claimed is not None:
        axes.plot(sizes, seconds[-1] * (sizes / sizes[-1]) ** claimed, ":", lw=1, color=colour)


PICTURES: dict[str, Callable[[Results, Figure, dict[str, str]], None]] = {
    "counts": counts,
    "bigram": bigram,
    "babygpt": babygpt,
    "difference": difference,
    "embedding": embedding,
    "loss": loss_over_time,
    "widths": widths,
    "forward": forward_cost,
    "training": training_cost,
}


def draw(results: Results) -> dict[str, str]:
    """File name to SVG: `loss.svg` and, the same in the colours of a dark page, `loss-dark.svg`; and so on."""
    drawn = {}
    for name, picture in PICTURES.items():
        drawn[f"{name}.svg"] = svg = _svg(lambda figure, theme, picture=picture: picture(results, figure, theme), LIGHT)
        for part in ("paper", "ink", "grid"):
            svg = svg.replace(LIGHT[part], DARK[part])
        drawn[f"{name}-dark.svg"] = svg
    return drawn


def _svg(picture: Callable[[Figure, dict[str, str]], None], theme: dict[str, str]) -> str:
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "babyjax",
        "figure.facecolor": theme["paper"],
        "axes.facecolor": theme["paper"],
        "savefig.facecolor": theme["paper"],
        "grid.color": theme["grid"],
        "legend.framealpha": 0.6,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), theme["ink"]
        ),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # which matters to outlines, not to text
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        picture(figure, theme)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
