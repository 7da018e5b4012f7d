"""The safetensors format: named arrays in a file, and nothing that could run.

A file is the length of its header as 8 little-endian bytes, the header, which is JSON, and the bytes of the arrays.
Reading is the work of the `safetensors` package, which trusts no number in the header; writing here copies nothing.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from babyjax.errors import BabyjaxError, DataError
from babyjax.files import read_text
from babyjax.text import truncated

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_INDEX = 1 << 26
FLOATS = ("F64", "F32", "F16", "BF16")


def write_safetensors(path: Path, arrays: dict[str, list[np.ndarray]]) -> None:
    """Write float32 arrays to a file, one by one, each joined of its parts along the last axis. Raises: OSError."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, parts in arrays.items():
        end = start + sum(part.size for part in parts) * np.dtype(np.float32).itemsize
        header[name] = {
            "dtype": "F32",
            "shape": [*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)],
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for parts in arrays.values():
            array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            file.write(np.ascontiguousarray(array, np.float32).data)


class Tensors:
    """The arrays of a folder of safetensors files, read when they are asked for. Close it by `with`."""

    def __init__(self, folder: Path):
        """Raises: DataError, in one sentence, if a file is missing, damaged, or elsewhere."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise BabyjaxError("safetensors files need the extra hf: pip install 'babyjax[hf]'") from None
        self._open, self._of = ExitStack(), {}
        for path in _files_of(folder):
            try:
                file = self._open.enter_context(safe_open(path, framework="np"))
                names = file.keys()
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path} is not a safetensors file: {truncated(str(error))}") from None
            for name in names:
                if name in self._of:
                    raise DataError(f"{folder} has the array {truncated(name)} twice")
                self._of[name] = file

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __contains__(self, name: object) -> bool:
        return name in self._of

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array without reading it."""
        return tuple(self._of[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Read an array as float32. Raises: DataError if it holds other than floats."""
        kind = self._of[name].get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise DataError(f"the array {truncated(name)} has the type {kind}; expected one of {', '.join(FLOATS)}")
        return self._of[name].get_tensor(name).astype(np.float32, copy=False)


def _files_of(folder: Path) -> list[Path]:
    """Return the files that hold the arrays of a model: the only one, or those that the index names."""
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE]
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which can run code, so convert it first" if pickled else ""
        raise DataError(f"{folder} has no {SINGLE}{hint}")
    try:
        names = sorted(set(json.loads(read_text(index, MAX_INDEX))["weight_map"].values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise DataError(f"{index} names the file {truncated(name)}, which is not a safetensors file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index} is not an index of safetensors files ({type(error).__name__})") from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{folder} lacks {truncated(missing[0])}, which its index names")
    return [folder / name for name in names]
