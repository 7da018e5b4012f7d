import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from babyjax.threefry import threefry2x32

# From the tests of Random123, where Threefry was published: key, counter, result.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
DRAWS = """
import hashlib, sys
import jax
import numpy as np
from babyjax.threefry import unroll_threefry

if sys.argv[1] == "unrolled":
    unroll_threefry()

@jax.jit
def draw(key):
    keys = jax.random.split(key, 3)
    one = jax.random.normal(keys[0], (5, 3)), jax.random.bits(jax.random.fold_in(keys[1], 7), (4, 2), "uint8")
    return one, jax.vmap(lambda key: jax.random.uniform(key, (6,)))(keys), jax.random.randint(keys[2], (), 0, 99)

drawn = draw(jax.random.key(3))
print(hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in jax.tree.leaves(drawn))).hexdigest())
print("while" in draw.lower(jax.random.key(3)).as_text())
"""


@pytest.mark.parametrize(("key", "counter", "result"), KNOWN)
def test_words_are_those_that_were_published(key, counter, result):
    words = threefry2x32(*(jnp.uint32(word) for word in (*key, *counter)))
    assert tuple(map(int, words)) == result


def run(*arguments: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_what_is_drawn_is_the_same_without_a_loop():
    (ours, our_loop), (jax, its_loop) = (run(DRAWS, how).split() for how in ("unrolled", "as it is"))
    assert ours == jax
    assert (our_loop, its_loop) == ("False", "True")


def test_commands_draw_without_a_loop():
    lower = "print(jax.jit(jax.random.bits).lower(jax.random.key(0)).as_text())"
    lowered = run(f"import jax; from babyjax.cli import prepare_jax; prepare_jax(); {lower}")
    assert "module" in lowered
    assert "while" not in lowered
