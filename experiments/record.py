"""What the experiments share: fair timing, and what a recorded result says of where it comes from."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import jax


def provenance(module: str) -> dict[str, Any]:
    """The command, the machine and the versions behind a result."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": shlex.join(["python", "-m", module, *map(_without_folder, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "versions": versions,
    }


def _without_folder(argument: str) -> str:
    """An argument as it would be typed beside the file it names: `FILE`, or `key=FILE`."""
    key, equals, value = argument.rpartition("=")
    return key + equals + (Path(value).name if os.path.exists(value) else value)


def take_turns(rounds: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each side, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side())
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times[1:]) for name, times in seconds.items()}


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, to be read by people too."""
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
