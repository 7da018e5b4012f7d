import subprocess
import sys
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.data import batches
from babyjax.data.batches import (
    batch_at,
    bytes_of,
    in_memory,
    is_mapped,
    read_windows,
    split_tokens,
    window_starts,
    windows_at,
)
from babyjax.errors import DataError

jitted = jax.jit(batch_at, static_argnums=(3, 4))


@given(st.integers(20, 500))
def test_split_is_the_first_nine_tenths_and_the_rest(length):
    tokens = np.arange(length, dtype=np.int32)
    split = split_tokens(tokens)
    assert len(split.train) == int(0.9 * length)
    np.testing.assert_array_equal(np.concatenate(split), tokens)


def test_a_text_shorter_than_a_block_is_refused():
    tokens = np.zeros(20, np.int32)
    assert len(split_tokens(tokens, block_size=17).train) == 18
    with pytest.raises(DataError, match=r"20 tokens.* too short for a block of 18"):
        split_tokens(tokens, block_size=18)
    with pytest.raises(DataError, match="too short to keep 10 %"):
        split_tokens(tokens[:10], block_size=1)


@given(step=st.integers(0, 2**31 - 2), seed=st.integers(0, 2**31 - 1))
def test_batch_holds_windows_and_the_same_windows_one_later(step, seed):
    tokens = jnp.arange(100, dtype=jnp.int32)
    inputs, targets = map(np.asarray, jitted(tokens, seed, step, 4, 8))
    chex.assert_shape([inputs, targets], (4, 8))
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    assert inputs.min() >= 0
    assert targets.max() <= 99


def test_batch_is_a_function_of_seed_and_step_with_and_without_jit():
    tokens = jnp.arange(10_000, dtype=jnp.int32)
    chex.assert_trees_all_equal(jitted(tokens, 7, 3, 32, 8), batch_at(tokens, 7, 3, 32, 8))
    starts = {tuple(jitted(tokens, seed, step, 32, 8)[0][:, 0].tolist()) for seed in (0, 1) for step in (0, 1, 2)}
    assert len(starts) == 6


def test_every_window_is_drawn_the_last_included():
    tokens = jnp.arange(12, dtype=jnp.int32)
    inputs, targets = jitted(tokens, 0, 0, 1000, 8)
    assert sorted(set(inputs[:, 0].tolist())) == [0, 1, 2, 3]
    assert targets.max() == 11


@pytest.fixture
def on_disk(tmp_path):
    """Write tokens to a file and map it."""

    def write(tokens):
        tokens.tofile(tmp_path / "tokens.bin")
        return np.memmap(tmp_path / "tokens.bin", tokens.dtype, "r")

    return write


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32])
def test_windows_from_a_file_are_those_from_memory(on_disk, rng, dtype):
    tokens = rng.integers(0, 200, 1000).astype(dtype)
    mapped = on_disk(tokens)
    assert is_mapped(mapped[5:])
    assert not is_mapped(tokens)
    windows = read_windows(mapped, 3, 7, 5, 4, 8)
    np.testing.assert_array_equal(windows, read_windows(tokens, 3, 7, 5, 4, 8))
    np.testing.assert_array_equal(windows[:, 1:3], read_windows(mapped, 3, 7, 5, 4, 8, slice(1, 3)))
    assert windows.dtype == dtype
    np.testing.assert_array_equal(read_windows(mapped[70:], 3, 7, 5, 4, 8), read_windows(tokens[70:], 3, 7, 5, 4, 8))
    for step in range(7, 12):
        from_memory = jitted(jnp.asarray(tokens), 3, step, 4, 8)
        np.testing.assert_array_equal(windows[step - 7][:, :-1], from_memory[0])
        np.testing.assert_array_equal(windows[step - 7][:, 1:], from_memory[1])
        chex.assert_trees_all_equal(jitted(jnp.asarray(np.roll(windows, 7, axis=0)), 0, step, 4, 8), from_memory)


def test_windows_are_drawn_past_what_an_int32_counts(tmp_path):
    """A sparse file of 2**31 + 2**30 tokens, of which only the drawn places are written."""
    length, marks = 2**31 + 2**30, np.arange(1, 9, dtype=np.uint8)
    starts = window_starts(5, 2, 3, 4, length - 7)
    assert starts.shape == (3, 4)
    assert starts.max() > 2**31
    np.testing.assert_array_equal(starts[1:], window_starts(5, 3, 2, 4, length - 7))
    assert len(set(starts.ravel().tolist())) == 12
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(length)
        for start in starts.ravel():
            file.seek(start)
            file.write(marks.tobytes())
    mapped = np.memmap(tmp_path / "tokens.bin", np.uint8, "r")
    np.testing.assert_array_equal(read_windows(mapped, 5, 2, 3, 4, 7), np.broadcast_to(marks, (3, 4, 8)))


def test_starts_are_uniform_past_an_int32():
    places = 2**40
    starts = window_starts(0, 0, 100, 64, places) / places
    assert abs(starts.mean() - 0.5) < 4 / (12 * starts.size) ** 0.5
    assert 0 <= starts.min() < 0.01
    assert 0.99 < starts.max() < 1


def test_windows_that_reach_past_the_end_repeat_the_last_token(on_disk, rng):
    tokens = rng.integers(0, 200, 100).astype(np.uint16)
    starts = np.array([[0, 95], [99, 100]])
    expected = tokens[np.minimum(starts[..., None] + np.arange(8), 99)]
    for form in (on_disk(tokens), tokens):
        np.testing.assert_array_equal(windows_at(form, starts, 8), expected)


def test_a_part_of_a_file_is_read_into_memory(on_disk, rng):
    tokens = rng.integers(0, 200, 100).astype(np.uint16)
    mapped = on_disk(tokens)
    for part in (slice(None), slice(7, 30), slice(30, 30)):
        read = in_memory(mapped[part])
        assert not is_mapped(read)
        np.testing.assert_array_equal(read, tokens[part])
    np.testing.assert_array_equal(in_memory(np.asarray(mapped[5:])[3:]), tokens[8:])
    assert in_memory(tokens) is tokens


def test_a_file_that_is_gone_or_became_shorter_is_named(on_disk, tmp_path):
    mapped = on_disk(np.zeros(100, np.uint8))
    with (tmp_path / "tokens.bin").open("r+b") as file:
        file.truncate(50)
    with pytest.raises(DataError, match=r"tokens\.bin has become shorter"):
        windows_at(mapped, np.array([45]), 8)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(DataError, match=r"cannot read .*tokens\.bin: No such file"):
        windows_at(mapped, np.array([0]), 8)


@given(st.integers(0, 60))
def test_bytes_are_added_up_in_pieces(length):
    tokens, lengths = np.resize(np.arange(5, dtype=np.uint8), length), np.array([1, 0, 4, 2, 3])
    with mock.patch.object(batches, "CHUNK", 7):
        assert bytes_of(tokens, lengths) == lengths[tokens].sum()


def test_no_window_is_drawn_from_a_text_that_is_no_longer():
    for length in (5, 8):
        with pytest.raises(DataError, match=f"a text of {length} tokens is too short for a block of 8"):
            batch_at(jnp.arange(length), 0, 0, 2, 8)


@pytest.mark.slow  # in a process without the type checks, which allow NumPy arrays only
def test_tokens_may_be_on_a_device():
    program = """if True:
        import babyjax, jax.numpy as jnp, numpy as np
        tokens = np.arange(90, dtype=np.int32) % 5
        model, sizes = babyjax.Bigram.from_tokens(tokens, 5), np.ones(5, int)
        for read in (np.asarray, jnp.asarray):
            split = babyjax.Split(read(tokens[:60]), read(tokens[60:]))
            pairs, nats = babyjax.PairCounts.from_split(split, 5), babyjax.token_nats(model, split, sizes, "val")
            report = babyjax.verify(lambda x: np.full((*x.shape, 5), -np.log(5)), split.val, block_size=4)
            print(pairs.entropy("val"), nats.sum(), report, babyjax.bytes_of(split.val, sizes))
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
