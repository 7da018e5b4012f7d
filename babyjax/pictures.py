"""Pictures of comparisons and sweeps, by matplotlib, which the extra `report` installs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from babyjax.errors import BabyjaxError
from babyjax.evaluation.comparison import Interval


def require_picture(path: Path) -> None:
    """Raises: BabyjaxError if no picture can be drawn into `path`."""
    if path.suffix not in (".svg", ".png"):
        raise BabyjaxError(f"a picture is an .svg or .png file, not {path.name}")
    if not path.parent.is_dir():
        raise BabyjaxError(f"cannot draw {path}: there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise BabyjaxError("a picture needs the package matplotlib: pip install 'babyjax[report]'") from None


def save_picture(figure: Any, path: Path) -> None:
    """Write a matplotlib figure; the same figure gives the same bytes. Raises: BabyjaxError if it cannot be written."""
    import matplotlib

    try:
        with matplotlib.rc_context({"svg.hashsalt": "babyjax"}):
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise BabyjaxError(f"cannot draw {path}: {error.strerror}") from None


def _band(axes: Any, places: Sequence[float | int], values: Any, label: str, color: str) -> None:
    """Draw the mean of rows of `values` and, around it, the 95 % interval over them."""
    intervals = [Interval.of(column.tolist()) for column in np.asarray(values).T]
    mean = np.array([interval.mean for interval in intervals])
    axes.plot(places, mean, label=label, color=color)
    if len(values) > 1:
        error = np.array([interval.error for interval in intervals])
        axes.fill_between(places, mean - error, mean + error, color=color, alpha=0.2, lw=0)


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Draw what `compare` returns: losses, learning curves, and losses by position in the context."""
    from matplotlib.figure import Figure

    rows, unit = result["runs"], result["unit"]
    curved = [row for row in rows if row["curves"] and all(len(curve) > 1 for curve in row["curves"])]
    placed = [row for row in rows if row["by_position"]]
    panels = 1 + bool(curved) + bool(placed)
    figure = Figure(figsize=(4.6 * panels, 4), layout="constrained")
    axes = iter(np.atleast_1d(figure.subplots(1, panels)))
    colors = {row["name"]: f"C{index % 10}" for index, row in enumerate(rows)}
    labels = {row["name"]: f"{row['name']}: {row['model']}" for row in rows}

    losses = next(axes)
    for index, row in enumerate(rows):
        losses.plot([index] * len(row["losses"]), row["losses"], ".", color=colors[row["name"]], alpha=0.5)
        losses.errorbar([index], [row["mean"]], yerr=row["interval"], fmt="o", capsize=4, color=colors[row["name"]])
    if "ngram" in result:
        losses.axhline(result["ngram"], color="grey", ls="--", lw=1)
        losses.set_xlabel(f"dashed: a counted {result['ngram_order']}-gram")  # a legend would cover losses
    losses.set_xticks(range(len(rows)), [labels[row["name"]] for row in rows], rotation=20, ha="right", fontsize=8)
    losses.set(ylabel=unit, title="losses, 95 % over seeds", xlim=(-0.5, len(rows) - 0.5))
    if curved:
        curves = next(axes)
        for row in curved:
            steps = sorted(set.intersection(*({step for step, _ in curve} for curve in row["curves"])))
            values = [[dict(map(tuple, curve))[step] for step in steps] for curve in row["curves"]]
            _band(curves, steps, values, labels[row["name"]], colors[row["name"]])
        curves.set(xlabel="step", ylabel="validation loss (nats per token)", title="learning curves")
        curves.legend(fontsize=8)
    if placed:
        places = next(axes)
        for row in placed:
            length = len(row["by_position"][0])
            _band(places, range(1, length + 1), row["by_position"], labels[row["name"]], colors[row["name"]])
        places.set(xlabel="tokens of context", ylabel="nats per token", title="loss by length of the context")
        places.legend(fontsize=8)
    for each in figure.axes:
        each.grid(alpha=0.3)
    save_picture(figure, path)


def draw_sweep(result: dict[str, Any], path: Path) -> None:
    """Draw the losses of a sweep over its first option of numbers, a line for each combination of the others."""
    from matplotlib.figure import Figure

    trials = [trial for trial in result["trials"] if np.isfinite(trial["held_out"] or np.nan)]
    keys = list(trials[0]["options"])
    numbers = {key: [_number(trial["options"][key]) for trial in trials] for key in keys}
    numeric = [key for key in keys if np.isfinite(numbers[key]).all() and len(set(numbers[key])) > 1]
    across = numeric[0] if numeric else keys[0]
    lines: dict[str, list[tuple[Any, float]]] = {}
    for trial, number in zip(trials, numbers[across], strict=True):
        rest = ", ".join(f"{key}={value}" for key, value in trial["options"].items() if key != across)
        lines.setdefault(rest, []).append((number if numeric else trial["options"][across], trial["held_out"]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot(*zip(*(sorted(points) if numeric else points), strict=True), "o-", label=label or None)
    if numeric and min(numbers[across]) > 0 and max(numbers[across]) >= 10 * min(numbers[across]):
        axes.set_xscale("log")
    # Trials that nearly diverged would hide the differences between the others.
    losses = [trial["held_out"] for trial in trials]
    low, middle = min(losses), float(np.median(losses))
    if max(losses) > low + 4 * (middle - low) > low:
        axes.set_ylim(low - 0.2 * (middle - low), low + 4 * (middle - low))
    best = ", ".join(f"{key}={value}" for key, value in result["best"].items())
    axes.set(xlabel=across, ylabel="nats per token of held-out training text", title=f"best: {best}")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend(fontsize=8)
    save_picture(figure, path)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
