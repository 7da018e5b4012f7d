import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from babyjax.runs import array_digest
from babyjax.runs.array_digest import digest_of

TYPES = st.sampled_from(["float32", "float64", "int32", "uint8", "bool", "float16", "bfloat16"])


@given(TYPES, st.lists(st.integers(0, 5), max_size=3), st.data())
@settings(deadline=None, max_examples=60)
def test_every_single_bit_and_every_exchange_changes_the_digest(kind, shape, data):
    size = math.prod(shape) * jnp.dtype(kind).itemsize
    raw = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    raw = raw % 2 if kind == "bool" else raw
    array = raw.view(jnp.dtype(kind)).reshape(shape)
    digest = digest_of({"x": array})
    assert digest == digest_of({"x": array.copy()}) != digest_of({"y": array})
    if size:
        bit = data.draw(st.integers(0, 8 * size - 1))
        other = raw.copy()
        other[bit // 8] ^= 1 << bit % 8 if kind != "bool" else 1
        assert digest_of({"x": other.view(array.dtype).reshape(shape)}) != digest
    flipped = array.reshape(-1)[::-1].reshape(shape)
    if flipped.tobytes() != array.tobytes():
        assert digest_of({"x": flipped}) != digest


@given(st.sampled_from(["float32", "bfloat16", "uint8", "bool"]), st.integers(1, 7), st.integers(1, 5), st.data())
@settings(max_examples=10)
def test_the_digest_of_parts_is_that_of_the_whole_wherever_it_is_computed(kind, outer, width, data):
    split, inner, stop = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), 4
    shape = (outer, split * width, inner)
    whole = np.random.default_rng(stop).integers(0, 1 << 16, shape).astype(jnp.dtype(kind))
    expected = array_digest._sum_of(array_digest.Part(whole.reshape(1, -1), 0, 0))
    parts = [
        array_digest.Part(part.reshape(outer, -1), index * width * inner, shape[1] * inner)
        for index, part in enumerate(np.split(whole, split, axis=1))
    ]
    assert sum(map(array_digest._sum_of, parts)) % 2**32 == expected % 2**32
    on_device = [array_digest._sum_on_device(jnp.asarray(part.rows), *part[1:]) for part in parts]
    assert sum(map(int, on_device)) % 2**32 == expected % 2**32


def test_long_arrays_are_summed_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    part = array_digest.Part(rng.standard_normal((7, 50)), 2**31, 1234567)
    expected = array_digest._sum_of(part)
    for words in (1, 3, 100, 101, 250):
        monkeypatch.setattr(array_digest, "WORDS", words)
        assert (array_digest._sum_of(part) - expected) % 2**32 == 0
