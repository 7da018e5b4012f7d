"""What the experiments share: their command line, where a result comes from, and how it is written."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import Any

import jax

import babyjax
from babyjax.cli import prepare_jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")
Results = dict[str, Any]


def provenance(module: str, device: str | None = None) -> Results:
    """Return the command, machine and versions behind a result. `device` defaults to the name of JAX's first."""
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {
        "command": shlex.join(["python", "-m", module, *map(_without_folder, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": device or jax.devices()[0].device_kind,
        "versions": {package: installed[package] for package in PACKAGES if package in installed},
    }


def origin(results: Results, *packages: str) -> str:
    """Return a line of Markdown: the command, date, machine and the versions of `packages` behind a result."""
    versions = [f"{name} {results['versions'][name]}" for name in packages]
    parts = (f"`{results['command']}`", results["date"], results["machine"], results["device"], *versions)
    return ", ".join(parts) + "."


def counted(path: str) -> Results:
    """Return the validation losses of counting on a text, in nats per token: the add-one bigram, the best n-gram."""
    task = babyjax.load_task(babyjax.load_config([f"data.path={path}"]))
    return {"bigram": task.pairs.baseline("val"), "ngram_order": task.ngram.order, "ngram": task.ngram.val}


def beside(counts: Results) -> str:
    """Return a line of Markdown with what `counted` found."""
    return (
        f"Counting has on the same validation split: the add-one bigram {counts['bigram']:.4f}, a "
        f"{counts['ngram_order']}-gram {counts['ngram']:.4f} (its order chosen on held-out training text)."
    )


def _without_folder(argument: str) -> str:
    """Return an argument, `FILE` or `key=FILE`, without a folder that is outside the current one."""
    key, equals, value = argument.rpartition("=")
    path = Path(value)
    return key + equals + (path.name if path.is_absolute() or ".." in path.parts else value)


def take_turns(rounds: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """Return the median seconds of each side, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side())
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times[1:]) for name, times in seconds.items()}


def write_json(path: Path, result: Results) -> None:
    """Write a result so that people can read it too."""
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run_experiment(
    folder: Path, measure: Callable[[str, bool], Results], report: Callable[[Results, Path], None]
) -> None:
    """Run an experiment on one text: measure, write results.json, report. With `--report` only report it again.

    `measure(path, quick)` returns plain numbers; `report(results, folder)` writes text and pictures.
    """
    module = f"experiments.{folder.name}"
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("text", nargs="?", help="a UTF-8 text file")
    parser.add_argument("--report", action="store_true", help="rewrite text and pictures from results.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script; needs --out")
    parser.add_argument("--out", type=Path, help="folder to write to (default: beside the script)")
    options = parser.parse_args()
    if bool(options.text) == options.report or (options.quick and not options.out):
        parser.error("give a text file, or --report; --quick needs --out FOLDER")
    out = options.out or folder
    if options.text:
        prepare_jax()
        start = time.perf_counter()
        results = provenance(module) | measure(options.text, options.quick)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "results.json", results | {"seconds": round(time.perf_counter() - start)})
    report(json.loads(((out if options.text else folder) / "results.json").read_text(encoding="utf-8")), out)
