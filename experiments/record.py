"""What a recorded result says of where it comes from."""

import json
import os
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
    files = [Path(argument).name if os.path.exists(argument) else argument for argument in sys.argv[1:]]
    return {
        "command": shlex.join(["python", "-m", module, *files]),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "versions": versions,
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, to be read by people too."""
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
