"""`metrics.jsonl`: one JSON object per step."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def finite_json(value: Any) -> Any:
    """`value` with numbers JSON cannot write, infinity and NaN, as null."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: dict[str, Any]) -> str:
    return json.dumps(finite_json(row), allow_nan=False) + "\n"


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows at the end of the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(_line, rows)))


def rewind_rows(path: Path, step: int, eval_interval: int) -> None:
    """Make the file what it was when step `step` was reached on the way to a later one.

    What was written after the checkpoint will be written again, and an evaluation made only because the run ended there
    goes. So a run that was cut has, to the byte, the rows of one that was not.
    """
    if not path.exists():
        return
    kept = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line) if line.endswith("\n") else {"step": math.inf}  # torn by a kill
            if row["step"] == step and step % eval_interval:
                line = _line({key: row[key] for key in ("step", "train_loss")})
            if row["step"] <= step:
                kept.append(line)
    replacement = path.with_suffix(".tmp")
    replacement.write_text("".join(kept), encoding="utf-8")
    replacement.replace(path)
