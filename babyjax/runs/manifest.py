"""`run.json`, the manifest of a run: what belongs to it, and the digests of everything that is read back.

A step is listed as pending before anything of it is written or removed and as a checkpoint once it has been read back
and found whole, so a process killed at any moment leaves a manifest that tells its own folders from the user's.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from babyjax.errors import RunError
from babyjax.files import MANIFEST, read_text, replace_file

FORMAT = 3
MAX_BYTES = 1 << 26

Step = Annotated[int, Field(ge=0, lt=2**31)]
Size = Annotated[int, Field(ge=0)]


def sha256_of(data: str | bytes) -> str:
    """Return the sha256 of a text or of bytes, in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Checkpoint(Entry):
    """One complete checkpoint: its evaluated losses, and the state of metrics.jsonl when it was taken."""

    step: Step
    losses: dict[str, float]  # nats per token by split, empty if the step was not evaluated
    arrays_digest: str
    metrics_bytes: Size
    metrics_sha256: str


class CorpusEntry(Entry):
    """The text of a run. `path` is where it was read, if the run keeps no copy of it."""

    name: str
    characters: Size
    sha256: str
    path: str | None = None


class Manifest(Entry):
    """Everything a run directory is, except for the arrays and the texts."""

    config: dict[str, Any]
    corpus: CorpusEntry
    files: dict[str, str]  # sha256 by name
    versions: dict[str, str]
    checkpoints: list[Checkpoint] = []  # ascending
    pending: list[Step] = []  # steps whose folders may be incomplete, and are ours to remove

    def replace(self, **changes: Any) -> "Manifest":
        """Return a copy with some fields changed."""
        return self.model_copy(update=changes)

    def write(self, folder: Path) -> None:
        """Replace the manifest in `folder`. Raises: OSError."""
        content = {"format": FORMAT, **self.model_dump()}
        content["sha256"] = sha256_of(_canonical(content))
        replace_file(folder / MANIFEST, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in `folder`. Raises: RunError if it is damaged, changed, or of another version."""
    path = folder / MANIFEST
    try:
        content = json.loads(read_text(path, MAX_BYTES))
        expected = content.pop("sha256")
        if content["format"] != FORMAT:
            raise RunError(f"{path} was written by another version of babyjax; train again with another run_dir")
        if sha256_of(_canonical(content)) != expected:
            raise RunError(f"{path} was changed after it was written; use another run_dir")
        del content["format"]
        return Manifest(**content)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is not the manifest of a run ({type(error).__name__}); use another run_dir") from None
