"""`metrics.jsonl`: one JSON object per step."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from babyjax.errors import RunError
from babyjax.files import replace_file

LEDGER = "ledger"


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


def _last_row(path: Path) -> tuple[list[str], dict[str, Any]]:
    try:
        *rows, last = path.read_text(encoding="utf-8").splitlines(keepends=True)
        row = json.loads(last)
        row["step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{path} was edited: it does not end with the row of a step") from None
    return rows, row


def add_ledger(path: Path, ledger: dict[str, Any]) -> None:
    """Put the ledger of a finished run into the file's last row. Raises `RunError` for an edited file."""
    rows, last = _last_row(path)
    replace_file(path, "".join(rows) + _line(last | {LEDGER: ledger}))


def has_ledger(path: Path) -> bool:
    """Whether the file's last row has the ledger of a finished run. Raises `RunError` for an edited file."""
    return LEDGER in _last_row(path)[1]


def rewind_rows(path: Path, step: int, eval_interval: int) -> None:
    """Make the file what it was when step `step` was reached on the way to a later one.

    What was written after the checkpoint will be written again; the ledger, and an evaluation made only because the run
    ended there, go. So a run that was cut has, to the byte, the rows of one that was not. Raises `RunError` for an
    edited file.
    """
    kept = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # torn by a kill
    for line in lines:
        try:
            row = json.loads(line)
            if row["step"] == step and step % eval_interval:
                line = _line({key: row[key] for key in ("step", "train_loss")})
            elif row.pop(LEDGER, None):
                line = _line(row)
            if row["step"] <= step:
                kept.append((row["step"], line))
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path} was edited: {line.strip()[:60]!r} is not a row of it") from None
    if [row_step for row_step, _ in kept] != list(range(1, step + 1)):
        raise RunError(f"{path} was edited: it does not have the rows of steps 1 to {step}, each once")
    replace_file(path, "".join(line for _, line in kept))
