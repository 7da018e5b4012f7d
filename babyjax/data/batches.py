"""Splits and batches. The batch of a step is a pure function of (tokens, seed, step), so there is no state to save."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from babyjax.errors import DataError

TRAIN_FRACTION = 0.9
CHUNK = 1 << 20  # tokens in memory at once, where all are needed one after another
# Losses of neighboring tokens are alike, so standard errors compare segments of this many tokens or more.
SEGMENT_TOKENS, MAX_SEGMENTS = 5000, 200


class Split(NamedTuple):
    """Training and validation tokens, in memory or in a mapped file; no pair of tokens crosses the boundary."""

    train: Integer[np.ndarray, " L"]
    val: Integer[np.ndarray, " M"]


def split_tokens(tokens: Integer[np.ndarray, " N"], block_size: int = 1) -> Split:
    """Split into the first 90 % for training and the rest for validation.

    Raises: DataError if the training split is not longer than `block_size` or validation has no pair.
    """
    boundary = int(TRAIN_FRACTION * len(tokens))
    split = Split(tokens[:boundary], tokens[boundary:])
    if len(split.train) <= block_size:
        smaller = " or a smaller model.block_size" if block_size > 1 else ""
        raise DataError(
            f"the corpus has {len(tokens):,} tokens, 90 % of them for training: too short for a block of "
            f"{block_size:,}; use a longer text{smaller}"
        )
    if len(split.val) < 2:
        raise DataError(
            f"the corpus has {len(tokens):,} tokens: too short to keep 10 % for validation; use a longer text"
        )
    return split


def bytes_of(tokens: Integer[np.ndarray, " L"], byte_lengths: Int[np.ndarray, " V"]) -> int:
    """Return the bytes of the text that tokens stand for, of however many."""
    return sum(int(np.bincount(chunk, minlength=len(byte_lengths)) @ byte_lengths) for chunk in chunks_of(tokens))


def segments_of(tokens: int) -> int:
    """Return the number of contiguous segments that the standard error of a loss over `tokens` tokens compares."""
    return max(1, min(tokens // SEGMENT_TOKENS, MAX_SEGMENTS))


def batch_at(
    tokens: Integer[Array, " L"] | Integer[Array, "K B W"],
    seed: Int[Array, ""] | int,
    step: Int[Array, ""] | int,
    batch_size: int,
    block_size: int,
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Return inputs and targets of training step `step`: `batch_size` windows drawn uniformly.

    A window starts anywhere in [0, L - block_size). Targets are the inputs one token later. `tokens` are a text, or the
    windows of K steps that `read_windows` has read, of which `step` is the number `step % K`.

    Raises: DataError if the text is no longer than a block.
    """
    if tokens.ndim == 3:
        window = tokens[step % tokens.shape[0]]
    elif tokens.shape[0] <= block_size:
        raise DataError(f"a text of {tokens.shape[0]} tokens is too short for a block of {block_size}")
    else:
        starts = _starts(seed, step, batch_size, tokens.shape[0] - block_size)
        window = tokens[starts[:, None] + jnp.arange(block_size + 1)]
    window = window.astype(jnp.int32)
    return window[:, :-1], window[:, 1:]


def _starts(seed: Int[Array, ""] | int, step: Int[Array, ""] | int, batch_size: int, places: int) -> Int[Array, " B"]:
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.randint(key, (batch_size,), 0, places)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _starts_of_steps(seed, first, count: int, batch_size: int, places: int) -> Int[Array, "K B"]:
    return jax.vmap(lambda step: _starts(seed, step, batch_size, places))(first + jnp.arange(count))


def window_starts(seed: int, first: int, count: int, batch_size: int, places: int) -> Int[np.ndarray, "K B"]:
    """Return where the windows of steps `first`, `first` + 1, ... start, in [0, `places`).

    Below 2**31 places they are those of `batch_at`; above, where JAX's int32 ends, each step has a Philox stream
    (Salmon et al. 2011) of its own.
    """
    if places < 2**31:
        with jax.default_device(_host()):  # an accelerator is busy with training
            return np.asarray(_starts_of_steps(seed, first, count, batch_size, places))
    streams = (np.random.Generator(np.random.Philox(key=[seed, step])) for step in range(first, first + count))
    return np.stack([stream.integers(places, size=batch_size) for stream in streams])


def _host() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return None


def read_windows(
    tokens: Integer[np.ndarray, " L"],
    seed: int,
    first: int,
    count: int,
    batch_size: int,
    block_size: int,
    rows: slice = slice(None),
) -> Integer[np.ndarray, "K B W"]:
    """Read the windows of steps `first` to `first + count - 1`, those that `batch_at` draws, from memory or a file.

    Only those of some `rows` of each batch are read if they are given.
    """
    starts = window_starts(seed, first, count, batch_size, len(tokens) - block_size)
    return windows_at(tokens, starts[:, rows], block_size + 1)


def windows_at(
    tokens: Integer[np.ndarray, " L"], starts: Int[np.ndarray, "*shape"], width: int
) -> Integer[np.ndarray, "*shape W"]:
    """Return `tokens[start : start + width]` of each start; past the end of the text its last token repeats.

    Raises: DataError if the file they are in cannot be read.
    """
    if (place := _place(tokens)) is None:
        return np.asarray(tokens)[np.minimum(starts[..., None] + np.arange(width), len(tokens) - 1)]
    windows = np.empty((*starts.shape, width), tokens.dtype)
    with _reading(place.path) as file:
        for window, start in zip(windows.reshape(-1, width), starts.ravel().tolist(), strict=True):
            known = window[: max(1, min(width, len(tokens) - start))]
            file.seek(place.offset + min(start, len(tokens) - 1) * tokens.itemsize)
            if file.readinto(known) < known.nbytes:
                raise DataError(f"{place.path} has become shorter")
            window[len(known) :] = known[-1]
    return windows


def in_memory(tokens: Integer[np.ndarray, " L"]) -> Integer[np.ndarray, " L"]:
    """Return tokens, read from their file if they are in one. Raises: DataError if it cannot be read.

    A page that is read through the mapping counts as this process's memory, and a megabyte around it.
    """
    if (place := _place(tokens)) is None:
        return np.asarray(tokens)
    with _reading(place.path) as file:
        file.seek(place.offset)
        return np.fromfile(file, tokens.dtype, len(tokens))


def chunks_of(tokens: Integer[np.ndarray, " L"], overlap: int = 0) -> Iterator[Integer[np.ndarray, " _"]]:
    """Yield a text in memory, about a million tokens at a time, each with the first `overlap` of the next."""
    for start in range(0, len(tokens) - overlap, CHUNK):
        yield in_memory(tokens[start : start + CHUNK + overlap])


def is_mapped(tokens: Integer[np.ndarray, " L"]) -> bool:
    """Return whether tokens are in a memory-mapped file."""
    return _place(tokens) is not None


class _Place(NamedTuple):
    path: str
    offset: int  # in bytes


def _place(tokens: Any) -> _Place | None:
    """Return where tokens, perhaps a part of a mapped file, are; None if in memory."""
    root = tokens
    while isinstance(getattr(root, "base", None), np.ndarray):  # a JAX array has none
        root = root.base
    if not isinstance(root, np.memmap) or not isinstance(root.base, mmap.mmap):  # such as a memmap of another type
        return None
    return _Place(str(root.filename), root.offset + tokens.ctypes.data - root.ctypes.data)


@contextmanager
def _reading(path: str) -> Iterator[Any]:
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
