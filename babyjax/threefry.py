"""JAX's random bits without a loop on a CPU.

For a CPU JAX lowers the 20 rounds of Threefry-2x32 (Salmon et al. 2011), from which `jax.random` draws, to a loop of
five iterations, and XLA compiles its body as many small programs. Unrolled, the rounds are one program that returns the
same bits, compiles faster and runs faster.
"""

import numpy as np
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir
from jaxtyping import Array, UInt32

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA

Words = UInt32[Array, "..."]


def threefry2x32(key_0: Words, key_1: Words, word_0: Words, word_1: Words) -> tuple[Words, Words]:
    """Return the two words of each counter, encrypted with the key. The arguments broadcast."""
    keys = key_0, key_1, key_0 ^ key_1 ^ np.uint32(PARITY)
    word_0, word_1 = word_0 + key_0, _opaque_sum(word_1, key_1)
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            word_0 = word_0 + word_1
            word_1 = (word_1 << rotation | word_1 >> (32 - rotation)) ^ word_0
        word_0 = word_0 + keys[(group + 1) % 3]
        word_1 = word_1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return word_0, word_1


def _opaque_sum(a: Words, b: Words) -> Words:
    """Return `a + b`, written so that LLVM does not recognize a sum.

    If it does, its loop strength reduction traces the sums of all rounds back to the index of a short loop, which can
    add almost a second to the compilation of a program.
    """
    return ((a | b) << 1) - (a ^ b)


def unroll_threefry() -> None:
    """Replace JAX's lowering of Threefry for a CPU in all programs that this process compiles from now on."""
    rule = mlir.lower_fun(threefry2x32, multiple_results=True)
    mlir.register_lowering(threefry2x32_p, rule, platform="cpu", inline=False)
