import jax.numpy as jnp
import numpy as np

from babyjax.counts.newton import _inverse
from babyjax.counts.objective import enable_x64


def test_blocks_are_inverted(rng):
    roots = rng.normal(size=(5, 6, 6))
    matrices = roots @ roots.swapaxes(1, 2) + 1e-3 * np.eye(6)
    with enable_x64(True):
        np.testing.assert_allclose(_inverse(jnp.asarray(matrices)), np.linalg.inv(matrices), rtol=1e-8)
