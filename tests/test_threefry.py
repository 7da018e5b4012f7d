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
from babyjax.threefry import write_out_rounds

if sys.argv[1] == "written out":
    write_out_rounds()

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


def test_what_is_drawn_is_the_same_without_a_loop():
    ran = [
        subprocess.run([sys.executable, "-c", DRAWS, how], capture_output=True, text=True, check=True).stdout.split()
        for how in ("written out", "as it is")
    ]
    assert ran[0][0] == ran[1][0]
    assert [loops for _, loops in ran] == ["False", "True"]


def test_commands_draw_without_a_loop():
    script = "import jax; from babyjax.cli import prepare_jax; prepare_jax(); "
    script += "print(jax.jit(jax.random.bits).lower(jax.random.key(0)).as_text())"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "module" in ran.stdout
    assert "while" not in ran.stdout
