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


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows at the end of the file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(finite_json(row), allow_nan=False) + "\n" for row in rows)


def drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows of steps 1 to `step`: what a run wrote after its last checkpoint it will write again."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(kept), encoding="utf-8")
        replacement.replace(path)
