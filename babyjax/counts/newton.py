"""Levenberg-Marquardt with conjugate gradients over both factors of BabyGPT v1 at once, in float64.

It is for a vocabulary whose V x V matrix is small. Damping uses a metric that knows how often a token occurs but not
how sure its predictions are: it must not fade where the curvature of a row does. The preconditioner inverts the damped
V blocks of A and of B.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from babyjax.counts.descent import Descent
from babyjax.counts.factors import UNKNOWN, Factors
from babyjax.counts.objective import enable_x64

CONJUGATE_GRADIENTS = 50
# No change of the factors lowers the loss if only a damping as large as this would be accepted.
MAX_DAMPING = 1e10
# Beyond it the loss is a difference of numbers too large for float64, and no step goes there.
MAX_LOGIT = 1e6


def newton_step(
    descent: Descent, targets: Float[np.ndarray, "V V"], weight: Float[np.ndarray, " V"], penalty: float
) -> Descent:
    """One step on sum_i w_i logsumexp(W_i) - sum_ij targets_ij W_ij + penalty / 2 (|A|^2 + |B|^2).

    `targets` are w_i P_ij, `weight` their row sums. A step that does not lower the objective is not taken: then damping
    grows, and there is no predicted decrease.
    """
    with enable_x64(True):
        now = descent.factors, descent.damping, descent.growth
        changes = _newton_step(*now, targets, weight, np.float64(penalty), penalized=penalty > 0)
        return descent._replace(**jax.tree.map(np.asarray, changes))


def _inverse(matrices: Float[Array, "R D D"]) -> Float[Array, "R D D"]:
    """Invert positive definite matrices by Gauss-Jordan elimination, one pivot of all of them at a time.

    `jnp.linalg.inv` calls LAPACK on a CPU, whose threads wait actively: up to 50 times slower on a busy machine.
    """

    def eliminate(k, m):
        pivot, column = m[k, k], m[:, k]
        row = m[k] / pivot
        m = m - column[:, None] * row
        return m.at[k].set(row).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)

    if not matrices.size:
        return matrices
    # The batch is the last axis, so that every operation of a pivot runs over contiguous memory.
    return jax.lax.fori_loop(0, matrices.shape[-1], eliminate, matrices.transpose(1, 2, 0)).transpose(2, 0, 1)


@partial(jax.jit, static_argnames="penalized")
def _newton_step(
    factors: Factors,
    damping: Float[Array, ""],
    growth: Float[Array, ""],
    targets: Float[Array, "V V"],
    weight: Float[Array, " V"],
    penalty: Float[Array, ""],
    *,
    penalized: bool,
) -> dict[str, Factors | Array]:
    x, unravel = ravel_pytree(factors)
    embedding, head, bias = factors
    width = embedding.shape[1]

    def objective(x: Float[Array, " N"]) -> Float[Array, ""]:
        now = unravel(x)
        logits = now.logits()
        nats = weight @ jax.nn.logsumexp(logits, axis=1) - jnp.vdot(targets, logits) + penalty / 2 * now.squares()
        return jnp.where(jnp.abs(logits).max() < MAX_LOGIT, nats, jnp.inf)

    gradient, hessian = jax.linearize(jax.grad(objective), x)
    logits, to_logits = jax.linearize(lambda x: unravel(x).logits(), x)
    from_logits = jax.linear_transpose(to_logits, x)
    predicted = jax.nn.softmax(logits, axis=1)
    mean = weight[:, None] * predicted

    def curvature(d: Float[Array, " N"]) -> Float[Array, " N"]:
        """The Gauss-Newton Hessian finds lower minima; with a penalty the global minimum needs the whole Hessian."""
        if penalized:
            return hessian(d)
        change = to_logits(d)
        return from_logits(mean * (change - (predicted * change).sum(1, keepdims=True)))[0]

    # The metric: token i weighs w_i in A, u_i in B; directions weigh as on average.
    unigram, expected, spread = mean.sum(0), predicted @ head, mean * (1 - predicted)
    metric_a = (head.T * unigram) @ head - (expected.T * weight) @ expected
    metric_b = (embedding.T * weight) @ embedding
    weight_a, weight_b = jnp.maximum(weight, 1e-7), jnp.maximum(unigram, 1e-7)

    def block(weight: Float[Array, " V"], metric: Float[Array, "D D"]) -> Float[Array, "V D D"]:
        floor = 1e-3 * (jnp.trace(metric) + 1e-12) / max(width, 1)
        return weight[:, None, None] * (metric + floor * jnp.eye(width))

    def gram(weight: Float[Array, "V V"], design: Float[Array, "V D"]) -> Float[Array, "V D D"]:
        return jnp.einsum("rs,sde->rde", weight, design[:, :, None] * design[:, None, :])

    def blockwise(blocks: Float[Array, "R D D"], diagonal: Float[Array, " V"], d: Float[Array, " N"]):
        now = unravel(d)
        rows = jnp.einsum("rij,rj->ri", blocks, jnp.concatenate([now.embedding, now.head]))
        embedding, head = jnp.split(rows, 2)
        return ravel_pytree(Factors(embedding, head, None if bias is None else diagonal * now.bias))[0]

    damped = damping * jnp.concatenate([block(weight_a, metric_a), block(weight_b, metric_b)])
    own = gram(mean, head) - weight[:, None, None] * expected[:, :, None] * expected[:, None, :]
    blocks = jnp.concatenate([own, gram(spread.T, embedding)]) + damped + penalty * jnp.eye(width)
    precondition = partial(blockwise, _inverse(blocks), 1 / (spread.sum(0) + damping * weight_b))

    def conjugate_gradient(carry):
        count, step, residual, direction, square = carry
        curved = curvature(direction) + blockwise(damped, damping * weight_b, direction)
        curve = direction @ curved
        concave = curve <= 0
        length = jnp.where(concave, jnp.where(count == 0, 1.0, 0.0), square / jnp.where(concave, 1.0, curve))
        step, residual = step + length * direction, residual - length * curved
        conditioned = precondition(residual)
        following = jnp.where(concave, 0.0, residual @ conditioned)
        return count + 1, step, residual, conditioned + following / square * direction, following

    first = precondition(-gradient)
    square = -gradient @ first
    _, step, *_ = jax.lax.while_loop(
        lambda carry: (carry[0] < CONJUGATE_GRADIENTS) & (carry[-1] > 1e-3 * square),
        conjugate_gradient,
        (jnp.int32(0), jnp.zeros_like(x), -gradient, first, square),
    )

    decrease = -(gradient @ step + step @ curvature(step) / 2)
    before, after = objective(x), objective(x + step)
    ratio, taken = (before - after) / decrease, after < before
    # Nielsen's rule: damping follows how true the model of the step was.
    good = ratio > 0.01
    lower = damping * jnp.maximum(0.2, 1 - (2 * ratio - 1) ** 3)
    return {
        "factors": unravel(jnp.where(taken, x + step, x)),
        "damping": jnp.where(good, jnp.maximum(lower, 1e-8), jnp.minimum(damping * growth, MAX_DAMPING)),
        "growth": jnp.where(good, 2.0, 2 * growth),
        "objective": jnp.where(taken, after, before),
        "predicted_decrease": jnp.where(ratio > 0.25, decrease, UNKNOWN),
    }
