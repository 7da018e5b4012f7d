"""JAX's random bits on a CPU, compiled as one program instead of a loop.

The 20 rounds of Threefry-2x32 (Salmon et al. 2011), from which `jax.random` draws, are a loop of five where JAX lowers
them for a CPU. XLA compiles its body as many small programs and runs them one by one. Written out they are one: the
bits are the same, and the parameters of a network are ready in half the time.
"""

import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir
from jaxtyping import Array, UInt32

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA

Words = UInt32[Array, "..."]


def threefry2x32(key_0: Words, key_1: Words, word_0: Words, word_1: Words) -> tuple[Words, Words]:
    """Return the two words of every counter, encrypted by the key. All broadcast."""
    keys = key_0, key_1, key_0 ^ key_1 ^ jnp.uint32(PARITY)
    word_0, word_1 = word_0 + key_0, word_1 + key_1
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            word_0 = word_0 + word_1
            word_1 = (word_1 << rotation | word_1 >> (32 - rotation)) ^ word_0
        word_0 = word_0 + keys[(group + 1) % 3]
        word_1 = word_1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return word_0, word_1


def write_out_rounds() -> None:
    """Have what this process compiles for a CPU from now on draw its random bits without a loop."""
    mlir.register_lowering(threefry2x32_p, mlir.lower_fun(threefry2x32, multiple_results=True), platform="cpu")
