"""Text of the growth experiment, from its results."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.record import beside, origin


def short(options: str) -> str:
    """Return "v9 layernorm n_layer=6" for "babygpt-v9-layernorm model.n_layer=6"."""
    name, *rest = options.split()
    name = name.removeprefix("babygpt").lstrip("-").replace("-", " ", 1) or "v1"
    return " ".join([name, *(option.removeprefix("model.") for option in rest)])


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def at_equal_steps(run: dict[str, Any]) -> float:
    """Loss from a random initialization after as many steps as the grown network made."""
    return run["random"][len(run["grown"]) - 1]


def at_all_steps(run: dict[str, Any]) -> float:
    """Loss from a random initialization after the steps of the smaller and the grown network together."""
    return run["random"][-1]


def wins(pair: dict[str, Any], random_loss: Callable[[dict[str, Any]], float]) -> str:
    """In how many seeds the grown network ends below a random initialization."""
    ahead = [run["grown"][-1] < random_loss(run) for run in pair["runs"]]
    return f"{sum(ahead)} of {len(ahead)}"


def name(pair: dict[str, Any]) -> str:
    return f"{short(pair['lower'])} to {short(pair['upper'])}"


def row(pair: dict[str, Any]) -> str:
    runs = pair["runs"]
    reached = [run["random_reaches_at_growth_after"] for run in runs]
    cells = [
        name(pair),
        spread([run["at_growth"] for run in runs]),
        spread([run["grown"][-1] for run in runs]),
        spread([at_equal_steps(run) for run in runs]),
        wins(pair, at_equal_steps),
        spread([run["random"][-1] for run in runs]),
        wins(pair, at_all_steps),
        "never" if None in reached else f"{mean(reached):,.0f}",
        f"{mean(run['seconds']['lower'] + run['seconds']['grown'] for run in runs):.1f}",
        f"{mean(run['seconds']['random'] for run in runs):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    steps, pairs = results["steps"], results["pairs"]
    seeds = len(pairs[0]["runs"])
    ahead = [wins(pair, at_equal_steps) for pair in pairs]
    ahead_of_all = [
        f"{name(pair)}: {wins(pair, at_all_steps)}" for pair in pairs if not wins(pair, at_all_steps).startswith("0")
    ]
    mixed = [f"{name(pair)}: {won}" for pair, won in zip(pairs, ahead, strict=True) if won != f"{seeds} of {seeds}"]
    lines = [
        f"# Growing a network on {results['corpus']}",
        "",
        f"AdamW at {results['learning_rate']:g}, batches of 32 windows, {seeds} seeds. A smaller network trains for "
        f"{steps:,} steps, grows, and trains for {steps:,} more.",
        f"The larger network is also trained from a random initialization, for {2 * steps:,} steps.",
        "Losses are validation losses in nats per token, mean ± standard deviation over the seeds.",
        beside(results["counted"]),
        "",
        f"- After {steps:,} steps of each, the grown network has the lower loss with every seed in "
        f"{len(pairs) - len(mixed)} of {len(pairs)} pairs{_list(' (seeds in the other: ', mixed)}.",
        f"- With the steps of the smaller network counted too, the random initialization has the lower loss with every "
        f"seed in {len(pairs) - len(ahead_of_all)} of {len(pairs)} pairs"
        f"{_list(' (seeds with growing ahead in the other: ', ahead_of_all)}.",
        "",
        f"| pair | when grown | grown, {steps:,} steps | random, {steps:,} steps | seeds grown is lower "
        f"| random, {2 * steps:,} steps | seeds grown is lower | steps of random to the loss when grown "
        "| seconds, smaller and grown | seconds, random |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(row, pairs),
        "",
        origin(results, "jax"),
    ]
    return "\n".join(lines) + "\n"


def _list(start: str, items: list[str]) -> str:
    return f"{start}{'; '.join(items)})" if items else ""


def report(results: dict[str, Any], folder: Path) -> None:
    """Write results.md."""
    (folder / "results.md").write_text(text(results), encoding="utf-8")
