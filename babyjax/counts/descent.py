"""First-order descent of the exact loss of BabyGPT v1, for any vocabulary.

L-BFGS on the exact gradient converges, but slowly where the vocabulary is large. There Adam goes first: each update
takes the exact rows of some contexts, drawn so that the gradient is unbiased, and its rate falls to zero.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, Int

from babyjax.counts.factors import LEAST_SHARE, UNKNOWN, Factors, balance
from babyjax.counts.objective import Targets

ITERATIONS = 20  # of L-BFGS in one step
UPDATES, UPDATES_PER_STEP, UPDATES_PER_DISPATCH = 700, 50, 10  # of Adam
CONTEXTS, ROWS = 4096, 512  # in an update, and worked on at once
# Of Adam. The peak of its rate is divided by the root of the width, as a logit is a sum of so many products.
PEAK_RATE, BETA1, BETA2, EPSILON = 0.8, 0.95, 0.95, 1e-9


class Moments(NamedTuple):
    """Adam's: running means of the gradient and of its square, and how often each context was drawn."""

    mean: Factors
    square: Factors
    visits: Float[Any, " V"]


class Descent(NamedTuple):
    """Factors on their way down the exact loss, as NumPy arrays.

    `objective` is the loss of `factors` plus the penalty, in nats. `predicted_decrease` is what a Newton step
    predicted, or what the last step of L-BFGS brought. `damping` and `growth` are those of Newton steps.
    """

    factors: Factors
    damping: Float[np.ndarray, ""]
    growth: Float[np.ndarray, ""]
    objective: Float[np.ndarray, ""]
    predicted_decrease: Float[np.ndarray, ""]
    moments: Moments | None

    @classmethod
    def start(cls, factors: Factors, *, sampled: bool) -> "Descent":
        """Return the state before the first step. `sampled` is for descents that Adam begins."""
        zero: Factors = jax.tree.map(lambda part: np.zeros(part.shape, np.float32), factors)
        moments = Moments(zero, zero, np.zeros(len(factors.embedding), np.float32)) if sampled else None
        return cls(factors, np.array(1.0), np.array(2.0), np.array(UNKNOWN), np.array(UNKNOWN), moments)


def _second_moments(factors: Factors, targets: Targets) -> tuple[Float[np.ndarray, "D D"], Float[np.ndarray, "D D"]]:
    """Return A^T diag(w) A and B^T diag(u) B, plus a little of their trace."""
    moments = []
    for part, weight in ((factors.embedding, targets.context_weight), (factors.head, targets.unigram)):
        moment, width = (part.T * weight) @ part, part.shape[1]
        moments.append(moment + (1e-9 * np.trace(moment) / max(width, 1) + 1e-30) * np.eye(width))
    return moments[0], moments[1]


def whiten(factors: Factors, targets: Targets) -> Factors:
    """Return factors that predict the same, with equal and diagonal second moments of A and B, weighted by frequency.

    There the Hessian is about diagonal: w_i or u_j, times the second moment of the other factor. A context that is
    never seen becomes the mean context.
    """
    embedding, head, bias = factors
    head = head - targets.unigram @ head / targets.unigram.sum()  # shifts each row of W
    center = targets.context_weight @ embedding
    embedding = np.where(targets.context_weight[:, None] > 0, embedding, center)
    if bias is not None:
        embedding, bias = embedding - center, bias + head @ center
    root_a, root_b = map(np.linalg.cholesky, _second_moments(Factors(embedding, head, bias), targets))
    left, scale, _ = np.linalg.svd(root_a.T @ root_b)
    gauge = np.linalg.solve(root_a.T, left * np.sqrt(scale))
    return Factors(embedding @ gauge, head @ np.linalg.inv(gauge).T, bias)


def lbfgs_step(descent: Descent, targets: Targets, penalty: float, dtype: type) -> Descent:
    """`ITERATIONS` of L-BFGS (SciPy's) in coordinates in which the Hessian is about the identity."""
    factors = balance(descent.factors) if penalty else whiten(descent.factors, targets)
    of_embedding, of_head = (np.diag(moment) for moment in _second_moments(factors, targets))
    weight, unigram = (np.maximum(share, LEAST_SHARE)[:, None] for share in (targets.context_weight, targets.unigram))
    floor = 1e-3 * max(of_embedding.mean(), of_head.mean()) if len(of_head) else 0.0
    scales = Factors(
        1 / np.sqrt(weight * (of_head + floor) + penalty),
        1 / np.sqrt(unigram * (of_embedding + floor) + penalty),
        None if factors.bias is None else unigram[:, 0] ** -0.5,
    )
    start, tree = jax.tree.flatten(jax.tree.map(np.divide, factors, scales))
    ends = np.cumsum([part.size for part in start])

    def factors_at(x: Float[np.ndarray, " N"]) -> Factors:
        parts = [part.reshape(like.shape) for part, like in zip(np.split(x, ends[:-1]), start, strict=True)]
        return jax.tree.map(np.multiply, jax.tree.unflatten(tree, parts), scales)

    def value_and_gradient(x: Float[np.ndarray, " N"]) -> tuple[float, Float[np.ndarray, " N"]]:
        value, gradient = targets.loss_and_gradient(factors_at(x), penalty, dtype)
        return value, np.concatenate(
            [part.ravel() for part in jax.tree.leaves(jax.tree.map(np.multiply, gradient, scales))]
        )

    x = np.concatenate([part.ravel() for part in start])
    options = {"maxiter": ITERATIONS, "maxcor": ITERATIONS, "maxfun": 3 * ITERATIONS, "ftol": 0, "gtol": 0}
    found = scipy.optimize.minimize(value_and_gradient, x, jac=True, method="L-BFGS-B", options=options)
    return descent._replace(
        factors=factors_at(found.x),
        objective=np.array(float(found.fun)),
        predicted_decrease=np.array(float(descent.objective - found.fun)),
    )


class Draws:
    """Which contexts the updates take.

    The expected number of draws of context i is proportional to sqrt(w_i) and at most 1. Its row is divided by that
    number, so that the expected gradient is the exact one. An update takes the rows in chunks of about `ROWS`.
    """

    def __init__(self, targets: Targets):
        self._targets, wanted = targets, min(CONTEXTS, len(targets.contexts))
        self._chunks = -(-wanted // ROWS)
        self._rows = wanted // self._chunks
        drawn = self._chunks * self._rows
        root = np.sqrt(targets.weight)
        order = np.argsort(-root)
        rest = np.cumsum(root[order][::-1])[::-1]
        shares = (drawn - np.arange(drawn)) / rest[:drawn]  # of the others if the first k are always in
        always = int(np.argmax(shares * root[order][:drawn] <= 1 + 1e-12))
        self._chance = np.minimum(1, shares[always] * root)
        # Those always drawn first, then the others in any order: neighbors are not drawn together.
        order[always:] = np.random.default_rng(0).permutation(order[always:])
        self._order, self._edges = order, np.cumsum(self._chance[order])
        # Of each entry of T: its column, and T_ij divided by the expected number of draws of i.
        self._columns = targets.matrix.indices.astype(np.int32)
        values = targets.matrix.data / np.repeat(self._chance, np.diff(targets.matrix.indptr))
        self._values = values.astype(np.float32)

    def __call__(self, seed: int) -> tuple[Any, ...]:
        """Return the contexts of `UPDATES_PER_DISPATCH` updates, their weights, bases, and the entries of their rows.

        An entry has its place in the flat rows of its chunk.
        """
        count = self._chunks * self._rows
        # One draw in each part.
        level = np.arange(count) + np.random.default_rng(seed).random((UPDATES_PER_DISPATCH, count))
        drawn = np.searchsorted(self._edges, level * (self._edges[-1] / count), side="right")
        drawn = self._order[np.minimum(drawn, len(self._order) - 1)]
        # The chunks take turns, so that each has its share of the frequent contexts.
        drawn = drawn.reshape(-1, self._rows, self._chunks).swapaxes(1, 2)
        chance, targets = self._chance[drawn], self._targets
        starts, vocab_size = np.asarray(targets.matrix.indptr), len(targets.unigram)
        lengths = np.diff(starts)[drawn]
        size = 1 << int(lengths.sum(axis=2).max()).bit_length()  # few sizes, few programs
        chunks = drawn.shape[:2]
        place, value = np.zeros((*chunks, size), np.int32), np.zeros((*chunks, size), np.float32)
        for index in np.ndindex(chunks):
            rows, length = drawn[index], lengths[index]
            ends = np.cumsum(length)
            entry = np.repeat(starts[rows] - ends + length, length) + np.arange(ends[-1])
            row = np.repeat(np.arange(self._rows, dtype=np.int32), length)
            place[index][: ends[-1]] = row * vocab_size + self._columns[entry]
            value[index][: ends[-1]] = self._values[entry]
        weight, base = (np.float32(part[drawn] / chance) for part in (targets.weight, targets.base))
        return targets.contexts[drawn], np.float32(targets.weight[drawn]), weight, base, place, value


def adam_step(descent: Descent, targets: Targets, draws: Draws, penalty: float, first: int) -> Descent:
    """`UPDATES_PER_STEP` updates by Adam, after `first` others."""
    factors = descent.factors if first else whiten(descent.factors, targets)
    carry = jax.tree.map(jnp.asarray, (jax.tree.map(np.float32, factors), descent.moments))
    for start in range(first, first + UPDATES_PER_STEP, UPDATES_PER_DISPATCH):
        carry = _adam(carry, start, np.float32(penalty), *draws(start))
    factors, moments = jax.tree.map(np.asarray, carry)
    factors = jax.tree.map(np.float64, factors)
    objective, _ = targets.loss_and_gradient(factors, penalty, np.float32)
    return descent._replace(factors=factors, moments=moments, objective=np.array(objective))


@jax.jit
def _adam(
    carry: tuple[Factors, Moments],
    first: Int[Array, ""] | int,
    penalty: Float[Array, ""],
    contexts: Int[Array, "K C R"],
    own_weight: Float[Array, "K C R"],
    weight: Float[Array, "K C R"],
    base: Float[Array, "K C R"],
    place: Int[Array, "K C N"],
    value: Float[Array, "K C N"],
) -> tuple[Factors, Moments]:
    def update(carry: tuple[Factors, Moments], batch: Any) -> Any:
        (embedding, head, bias), moments = carry
        number, contexts, own_weight, *entries = batch
        rows = embedding[contexts]

        def chunk(sums: tuple[Array, Array], part: Any) -> Any:
            rows, weight, base, place, value = part
            logits = rows @ head.T + (0.0 if bias is None else bias)
            cells = jnp.exp(logits - logits.max(axis=1, keepdims=True))
            cells = cells * (weight / cells.sum(axis=1))[:, None] - base[:, None]
            cells = cells.ravel().at[place].add(-value).reshape(cells.shape)  # the gradient in the logits
            return (sums[0] + (rows.T @ cells).T, sums[1] + cells.sum(axis=0)), (cells @ head) / weight[:, None]

        zero = jnp.zeros_like(head), jnp.zeros(len(head))
        (of_head, of_bias), of_rows = jax.lax.scan(chunk, zero, (rows, *entries))
        contexts = contexts.ravel()
        rows, of_rows = (part.reshape(-1, part.shape[-1]) for part in (rows, of_rows))
        gradient = Factors(
            of_rows + penalty * rows / own_weight.reshape(-1, 1),
            of_head + penalty * head,
            None if bias is None else of_bias,
        )
        # A context has the moments of the updates that drew it.
        mean, square = (part._replace(embedding=part.embedding[contexts]) for part in moments[:2])
        mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, gradient)
        square = jax.tree.map(lambda s, g: BETA2 * s + (1 - BETA2) * g**2, square, gradient)
        visits = moments.visits[contexts] + 1
        count = Factors(visits[:, None], number + 1.0, None if bias is None else number + 1.0)
        rate = PEAK_RATE / max(head.shape[1], 1) ** 0.5 * (1 - number / UPDATES)
        step = jax.tree.map(
            lambda m, s, n: -rate * m / (1 - BETA1**n) / (jnp.sqrt(s / (1 - BETA2**n)) + EPSILON), mean, square, count
        )
        factors = Factors(  # a rare context is drawn less often, so the rate of contexts is twice as high
            embedding.at[contexts].add(2 * step.embedding), head + step.head, None if bias is None else bias + step.bias
        )
        mean, square = (
            part._replace(embedding=whole.embedding.at[contexts].set(part.embedding))
            for whole, part in zip(moments[:2], (mean, square), strict=True)
        )
        return (factors, Moments(mean, square, moments.visits.at[contexts].set(visits))), None

    numbers = jnp.float32(first) + jnp.arange(len(contexts), dtype=jnp.float32)
    batches = numbers, contexts, own_weight, weight, base, place, value
    return jax.lax.scan(update, carry, batches)[0]
