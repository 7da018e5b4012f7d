"""Races against the clock: the loss that commands reach, and the wall time they take from the first to the last.

Each entry is a list of shell commands in a folder that holds only `text.txt`, with an empty cache of compiled programs.
The clock runs from the start of the first command to the end of the last, which prints the losses as one JSON object.
After the clock, babyjax verifies the runs that an entry names.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import babyjax
from babyjax.evaluation.comparison import Interval
from experiments.record import Results, origin, provenance, write_json


class Entry(NamedTuple):
    """What takes part: shell commands, with {seed} in place of the seed."""

    what: str
    commands: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    verified: tuple[str, ...] = ()  # runs to verify after the clock, each with the options of its evaluation
    by: str = "babyjax"


def measure(entry: Entry, seed: int, text: Path) -> Results:
    """Run the commands of an entry. Raises: CalledProcessError if one fails, after showing what it said."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(text, Path(folder) / "text.txt")
        environment["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/xla"
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])

        def run(command: str, statuses: tuple[int, ...] = (0,)) -> str:
            ran = subprocess.run(
                command, shell=True, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
            )
            if ran.returncode not in statuses:
                print(ran.stdout, ran.stderr, sep="\n", file=sys.stderr)
                ran.check_returncode()
            return ran.stdout

        load, busy, start = os.getloadavg()[0], _cpu_seconds(), time.perf_counter()
        seconds, out = [], ""
        for command in entry.commands:
            began = time.perf_counter()
            out = run(command.format(seed=seed))
            seconds.append(round(time.perf_counter() - began, 2))
        wall, cpu = time.perf_counter() - start, _cpu_seconds() - busy
        found = json.loads(out)
        val = found["splits"]["val"] if "splits" in found else found
        verified = {}
        for verified_run in entry.verified:
            name, _, options = verified_run.partition(" ")
            command = f"babyjax evaluate run_dir={name} split=val verify=true format=json {options}"
            checked = json.loads(run(command, statuses=(0, 1)))  # 1 if a check fails, which is reported
            verified[name] = checked["verification"]
    return {
        "seed": seed,
        "static": val.get("nats_per_token"),
        "adaptive": val.get("adaptive", {}).get("nats_per_token"),
        "standard_error": val.get("standard_error"),
        "seconds": wall,
        "command_seconds": seconds,
        "cpu_seconds": cpu,
        "load_before": load,
        "verified": verified,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(values: list[float]) -> str:
    """Return the mean of some losses and their 95 % interval over seeds."""
    interval = Interval.of(values)
    return f"{interval.mean:.4f}" + (f" ± {interval.error:.4f}" if interval.error is not None else "")


def table(results: Results, column: str, limit: float) -> list[str]:
    """Return the entries with a loss of this kind as a Markdown table, the best first."""
    rows: list[tuple[float, str]] = []
    for name, entry in results["entries"].items():
        losses = [run[column] for run in entry["runs"] if run[column] is not None]
        if losses:
            longest = max(run["seconds"] for run in entry["runs"])
            late = "" if longest <= limit else f" (over {limit:g})"
            rows.append(
                (
                    mean(losses),
                    f"| {name} | {entry['by']} | {shown(losses)} | {len(losses)} | "
                    f"{mean(run['seconds'] for run in entry['runs']):.0f}, at most {longest:.0f}{late} | "
                    f"{mean(run['cpu_seconds'] for run in entry['runs']):.0f} |",
                )
            )
    head = ["| entry | by | nats per token | seeds | wall seconds | CPU seconds |", "|---|---|---:|---:|---:|---:|"]
    return [*head, *(row for _, row in sorted(rows))]


def ending(results: Results) -> list[str]:
    """Return what the reports end with: whether the runs passed verification, the commands, and the origin."""
    entries = results["entries"]
    runs = [run for entry in entries.values() for run in entry["runs"]]
    checked = [each["passed"] for run in runs for each in run["verified"].values()]
    lines = [f"Verified after the clock: {sum(checked)} of {len(checked)} runs passed.", ""]
    for name, entry in entries.items():
        lines += [f"**{name}**: {entry['what']}.", "", "```sh", *entry["commands"], "```", ""]
    return [*lines, origin(runs[-1]["provenance"], "jax")]


def race(folder: Path, entries: dict[str, Entry], report: Callable[[Results, Path], None]) -> None:
    """Measure the named entries, or all, keep their results by name and seed, and write the report."""
    module = f"experiments.{folder.name}"
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("text", nargs="?", help="a UTF-8 text file")
    parser.add_argument("names", nargs="*", help="entries to measure (default: all)")
    parser.add_argument("--report", action="store_true", help="rewrite the text from results.json")
    parser.add_argument("--out", type=Path, default=folder, help="folder to write to (default: beside the script)")
    options = parser.parse_args()
    if bool(options.text) == options.report:
        parser.error("give a text file, or --report")
    if options.report and not (options.out / "results.json").exists():
        parser.error(f"there is no results.json in {options.out}")
    if odd := set(options.names) - set(entries):
        parser.error(f"unknown entry: {min(odd)}")
    path = options.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"entries": {}}
    if options.text:
        corpus = babyjax.read_corpus(options.text)
        if results.get("sha256") != corpus.sha256:
            results = {"corpus": corpus.name, "sha256": corpus.sha256, "entries": {}}
        for name in options.names or entries:
            entry = entries[name]
            said = {"what": entry.what, "by": entry.by, "commands": list(entry.commands)}
            runs: list[Results] = results["entries"].get(name, {}).get("runs", [])
            if results["entries"].get(name, {}).get("commands") != said["commands"]:
                runs = []  # of another entry with this name
            for seed in entry.seeds:
                run = measure(entry, seed, Path(options.text)) | {"provenance": provenance(module, "cpu")}
                runs = [*(other for other in runs if other["seed"] != seed), run]
                results["entries"][name] = said | {"runs": runs}
                write_json(path, results)
                print(name, {key: run[key] for key in ("seed", "static", "adaptive", "seconds")}, flush=True)
    report(results, options.out)
