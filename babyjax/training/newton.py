"""Levenberg-Marquardt with conjugate gradients over both factors of BabyGPT v1 at once, in float64.

For a vocabulary whose V x V fits comfortably. The Hessian is the Gauss-Newton one, damped by a metric that knows how
often a token occurs but not how sure its predictions are: where a row's own curvature fades, damping must not. It is
preconditioned by the damped V blocks of A and of B, inverted.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from babyjax.training.factors import UNKNOWN, Descent, Factors

CONJUGATE_GRADIENTS = 50
# No change of the factors lowers the loss where only a damping as large as this would be accepted.
MAX_DAMPING = 1e10
# Beyond it the loss is a difference of numbers too large for float64, and no step goes there.
MAX_LOGIT = 1e6


def double_precision() -> AbstractContextManager:
    """JAX in float64 while this is entered."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # before jax 0.8

    return enable_x64()


def _dot(a: Factors, b: Factors) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), start=jnp.zeros(()))


def _add(a: Factors, scale: Array | float, b: Factors) -> Factors:
    return jax.tree.map(lambda x, y: x + scale * y, a, b)


def _gram(weight: Float[Array, "R S"], design: Float[Array, "S D"]) -> Float[Array, "R D D"]:
    """sum_s weight_rs design_s design_s^T for every r: one matrix product, by halves, since it is symmetric."""
    width = design.shape[1]
    row, column = np.tril_indices(width)
    place = np.zeros((width, width), np.int32)
    place[row, column] = place[column, row] = np.arange(len(row))
    return (weight @ (design[:, row] * design[:, column]))[:, place]


def _inverse(matrices: Float[Array, "R D D"]) -> Float[Array, "R D D"]:
    """Inverses of positive definite matrices by Gauss-Jordan elimination, one pivot of all of them at a time."""

    def eliminate(k, m):
        pivot = m[k, k]
        row, column = m[k] / pivot, m[:, k]
        in_row = (jnp.arange(len(m)) == k)[:, None, None]
        in_column = in_row.swapaxes(0, 1)
        m = m - column[:, None] * row
        m = jnp.where(in_row, row, jnp.where(in_column, -(column / pivot)[:, None], m))
        return jnp.where(in_row & in_column, 1 / pivot, m)

    if matrices.shape[-1] == 0:
        return matrices
    # With the batch last, so that every operation of a pivot runs over contiguous memory.
    return jax.lax.fori_loop(0, matrices.shape[-1], eliminate, matrices.transpose(1, 2, 0)).transpose(2, 0, 1)


class _Step(NamedTuple):
    factors: Factors
    damping: Array
    growth: Array
    objective: Array
    promise: Array


def newton_step(
    state: Descent, targets: Float[np.ndarray, "V V"], weight: Float[np.ndarray, " V"], penalty: float
) -> Descent:
    """One step on sum_i w_i logsumexp(W_i) - sum_ij targets_ij W_ij + penalty / 2 (|A|^2 + |B|^2).

    `targets` are w_i P_ij, `weight` their row sums. A step that does not lower it is not taken; damping then grows, and
    there is no promise.
    """
    with double_precision():
        new = _newton_step(state.factors, state.damping, state.growth, targets, weight, np.float64(penalty))
        return state._replace(**jax.tree.map(np.asarray, new)._asdict())


@jax.jit
def _newton_step(
    x: Factors,
    damping: Float[Array, ""],
    growth: Float[Array, ""],
    targets: Float[Array, "V V"],
    weight: Float[Array, " V"],
    penalty: Float[Array, ""],
) -> _Step:
    embedding, head, bias = x
    width = embedding.shape[1]

    def objective(x: Factors):
        logits = x.logits()
        ridge = jnp.vdot(x.embedding, x.embedding) + jnp.vdot(x.head, x.head)
        value = weight @ jax.nn.logsumexp(logits, axis=1) - jnp.vdot(targets, logits) + penalty / 2 * ridge
        return jnp.where(jnp.abs(logits).max() < MAX_LOGIT, value, jnp.inf)

    predicted = jax.nn.softmax(x.logits(), axis=1)
    mean = weight[:, None] * predicted
    unigram = mean.sum(0)
    wrong = mean - targets
    gradient = Factors(
        wrong @ head + penalty * embedding,
        wrong.T @ embedding + penalty * head,
        None if bias is None else wrong.sum(0),
    )

    # The metric: token i weighs w_i in A, u_i in B; directions weigh as on average.
    expected = predicted @ head
    floor = 1e-3 * jnp.eye(width) / max(width, 1)
    metric_a = (head.T * unigram) @ head - (expected.T * weight) @ expected
    metric_b = (embedding.T * weight) @ embedding
    metric_a, metric_b = (metric + floor * (jnp.trace(metric) + 1e-12) for metric in (metric_a, metric_b))
    weight_a, weight_b = jnp.maximum(weight, 1e-7), jnp.maximum(unigram, 1e-7)

    def damp(d: Factors) -> Factors:
        return Factors(
            weight_a[:, None] * (d.embedding @ metric_a),
            weight_b[:, None] * (d.head @ metric_b),
            None if d.bias is None else weight_b * d.bias,
        )

    # The part of the Hessian that may be concave: without a penalty Gauss-Newton alone finds lower minima, with one the
    # global minimum is where the two are in balance.
    concave_part = (penalty > 0).astype(embedding.dtype)

    def curvature(d: Factors) -> Factors:
        change = d.embedding @ head.T + embedding @ d.head.T + (0 if d.bias is None else d.bias)
        change = mean * (change - (predicted * change).sum(1, keepdims=True))
        return Factors(
            change @ head + concave_part * (wrong @ d.head) + penalty * d.embedding,
            change.T @ embedding + concave_part * (wrong.T @ d.embedding) + penalty * d.head,
            None if d.bias is None else change.sum(0),
        )

    blocks_a = _gram(mean, head) - weight[:, None, None] * expected[:, :, None] * expected[:, None, :]
    blocks_b = _gram((mean * (1 - predicted)).T, embedding)
    ridge = penalty * jnp.eye(width)
    inverse = _inverse(
        jnp.concatenate(
            [
                blocks_a + damping * weight_a[:, None, None] * metric_a + ridge,
                blocks_b + damping * weight_b[:, None, None] * metric_b + ridge,
            ]
        )
    )
    inverse_bias = 1 / ((mean * (1 - predicted)).sum(0) + damping * weight_b)

    def precondition(g: Factors) -> Factors:
        both = jnp.einsum("rij,rj->ri", inverse, jnp.concatenate([g.embedding, g.head]))
        embedding, head = jnp.split(both, 2)
        return Factors(embedding, head, None if g.bias is None else inverse_bias * g.bias)

    def conjugate_gradient(carry):
        count, step, residual, direction, square = carry
        curved = _add(curvature(direction), damping, damp(direction))
        curve = _dot(direction, curved)
        concave = curve <= 0
        length = jnp.where(concave, jnp.where(count == 0, 1.0, 0.0), square / jnp.where(concave, 1.0, curve))
        step, residual = _add(step, length, direction), _add(residual, -length, curved)
        conditioned = precondition(residual)
        following = jnp.where(concave, 0.0, _dot(residual, conditioned))
        return count + 1, step, residual, _add(conditioned, following / square, direction), following

    descent = jax.tree.map(jnp.negative, gradient)
    first = precondition(descent)
    enough = 1e-3 * _dot(descent, first)
    start = (jnp.int32(0), jax.tree.map(jnp.zeros_like, x), descent, first, _dot(descent, first))
    _, step, *_ = jax.lax.while_loop(
        lambda carry: (carry[0] < CONJUGATE_GRADIENTS) & (carry[-1] > enough), conjugate_gradient, start
    )

    promise = -(_dot(gradient, step) + _dot(step, curvature(step)) / 2)
    here, there = objective(x), objective(_add(x, 1.0, step))
    ratio = (here - there) / promise
    taken = there < here
    # Nielsen's rule: damping follows how true the model of the step was.
    good = ratio > 0.01
    lower = damping * jnp.maximum(0.2, 1 - (2 * ratio - 1) ** 3)
    return _Step(
        jax.tree.map(lambda new, old: jnp.where(taken, new, old), _add(x, 1.0, step), x),
        jnp.where(good, jnp.maximum(lower, 1e-8), jnp.minimum(damping * growth, MAX_DAMPING)),
        jnp.where(good, 2.0, 2 * growth),
        jnp.where(taken, there, here),
        jnp.where(ratio > 0.25, promise, UNKNOWN),
    )
