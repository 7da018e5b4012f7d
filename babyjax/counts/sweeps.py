"""Alternating Newton sweeps over the exact loss of BabyGPT v1, in chunks of rows: memory is bounded at any vocabulary.

With B held, every row of A is a softmax regression of its own. With A held, every row of B is a Poisson regression of
its own (the multinomial-Poisson transformation, arXiv 1707.08538). Each row gets one damped Newton step from a few
conjugate gradients, all rows of a chunk at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.sparse import csr_array
from scipy.special import entr, logsumexp

from babyjax.counts.factors import LEAST_SHARE, Descent, Factors, balance
from babyjax.counts.pairs import PairCounts

if jax.__version_info__ < (0, 8):
    from jax.experimental import enable_x64  # pyright: ignore
else:
    from jax import enable_x64

# Cells worked on at once: a few arrays of them fit the cache of a CPU.
CHUNK_CELLS = 1 << 20
CONJUGATE_GRADIENTS = 3
# How far one step may move a logit, in nats.
LONGEST = 10.0


def chunks_of(rows: int, columns: int) -> Iterator[slice]:
    """Yield the rows of a matrix, `CHUNK_CELLS` cells at a time. All chunks are equal: the last overlaps another."""
    height = min(rows, max(1, CHUNK_CELLS // columns))
    for start in range(0, rows, height):
        start = min(start, rows - height)
        yield slice(start, start + height)


@dataclass(frozen=True)
class Targets:
    """w_i P_ij with add-k smoothing, over the contexts seen. A context that is never seen has no weight.

    `contexts` are the tokens i and `weight` their w_i; `unigram` is the column marginal. A cell is the sum of `base`,
    what smoothing adds to every cell of a row, and a sparse `matrix`.
    """

    contexts: Int[np.ndarray, " S"]
    weight: Float[np.ndarray, " S"]
    unigram: Float[np.ndarray, " V"]
    base: Float[np.ndarray, " S"]
    matrix: csr_array

    @classmethod
    def of(cls, pairs: PairCounts, smoothing: float) -> "Targets":
        """Return the targets of the training split."""
        seen, totals = pairs.counts["train"] > 0, pairs.context_totals("train")
        contexts = np.flatnonzero(totals)
        weight = totals[contexts] / totals.sum()
        scale = weight / (totals[contexts] + smoothing * pairs.vocab_size)
        row, column = np.searchsorted(contexts, pairs.current[seen]), pairs.following[seen]
        entry = scale[row] * pairs.counts["train"][seen]
        unigram = np.bincount(column, entry, pairs.vocab_size) + (smoothing * scale).sum()
        matrix = csr_array((entry, (row, column)), shape=(len(contexts), pairs.vocab_size))
        return cls(contexts, weight, np.maximum(unigram, LEAST_SHARE), smoothing * scale, matrix)

    @cached_property
    def _transposed(self) -> csr_array:
        return self.matrix.T.tocsr()

    def rows(self, here: slice) -> Float[np.ndarray, "R V"]:
        """Return the targets of some contexts."""
        return self.matrix[here].toarray() + self.base[here, None]

    def columns(self, here: slice) -> Float[np.ndarray, "R S"]:
        """Return the targets of some following tokens."""
        return self._transposed[here].toarray() + self.base

    @cached_property
    def dense(self) -> tuple[Float[np.ndarray, "V V"], Float[np.ndarray, " V"]]:
        """The matrix w_i P_ij over the whole vocabulary, and w."""
        vocab_size = len(self.unigram)
        matrix, weight = np.zeros((vocab_size, vocab_size)), np.zeros(vocab_size)
        matrix[self.contexts], weight[self.contexts] = self.rows(slice(None)), self.weight
        return matrix, weight

    @cached_property
    def entropy(self) -> float:
        """sum_i w_i H(P_i) in nats, a lower bound of the loss."""
        entries = np.diff(self.matrix.indptr)
        weight, base = np.repeat(self.weight, entries), np.repeat(self.base, entries)
        unseen = (len(self.unigram) - entries) * entr(self.base / self.weight)
        return float(weight @ entr((base + self.matrix.data) / weight) + self.weight @ unseen)

    def loss(self, factors: Factors) -> float:
        """Return the exact loss of `factors` in nats, in float64."""
        nats = np.zeros(len(self.contexts))
        for here in chunks_of(len(self.contexts), len(self.unigram)):
            logits = factors.logits(self.contexts[here])
            nats[here] = (self.rows(here) * (logsumexp(logits, axis=1, keepdims=True) - logits)).sum(1)
        return float(nats.sum())


def sweep(descent: Descent, targets: Targets, penalty: float, dtype: type) -> Descent:
    """Return the descent after one pass over A and one over B and b."""
    embedding, head, bias = jax.tree.map(np.array, descent.factors)
    contexts, weight, unigram = targets.contexts, targets.weight, targets.unigram
    embedding_damping, ridge = descent.embedding_damping.copy(), penalty * np.eye(head.shape[1])

    # A shift common to the rows of B only shifts each row of W, so the design may be centered.
    shift = unigram @ head / unigram.sum()
    design, offset = head - shift, np.zeros(len(head)) if bias is None else bias
    rows, damping, root = embedding[contexts], embedding_damping[contexts], _metric_root(design, unigram)
    embedding[contexts], embedding_damping[contexts], log_normalizer, nats = _update(
        rows, targets.rows, weight, damping, design, offset, ridge, root, dtype, poisson=False
    )
    log_normalizer += embedding[contexts] @ shift
    unseen = np.delete(embedding, contexts, axis=0)
    objective = nats + penalty / 2 * ((unseen**2).sum() + (head**2).sum())

    if bias is not None and not penalty:  # the same logits, and a centered design
        center = weight @ embedding[contexts]
        embedding -= center
        bias += head @ center
    design, offset, rows, damping = embedding[contexts], np.log(weight) - log_normalizer, head, descent.head_damping
    root = _metric_root(design, weight)
    if bias is not None:  # a direction of its own, without a penalty
        design, rows = np.column_stack([design, np.ones(len(design))]), np.column_stack([head, bias])
        root, ridge = np.pad(root, (0, 1)), np.pad(ridge, (0, 1))
        root[-1, -1] = 1
    rows, head_damping, _, _ = _update(
        rows, targets.columns, unigram, damping, design, offset, ridge, root, dtype, poisson=True
    )
    head, bias = (rows, None) if bias is None else (rows[:, :-1], rows[:, -1])
    return descent._replace(
        factors=balance(Factors(embedding, head, bias)),
        embedding_damping=embedding_damping,
        head_damping=head_damping,
        objective=np.array(objective),
        predicted_decrease=np.array(descent.objective - objective),
    )


def _metric_root(design: Float[np.ndarray, "S D"], weight: Float[np.ndarray, " S"]) -> Float[np.ndarray, "D D"]:
    """Return L with L L^T the weighted second moment of the rows of `design`, plus a little of its trace."""
    moment = (design.T * weight) @ design
    width = len(moment)
    return np.linalg.cholesky(moment + (1e-6 * np.trace(moment) / max(width, 1) + 1e-30) * np.eye(width))


def _update(
    rows: Float[np.ndarray, "R D"],
    targets: Callable[[slice], Float[np.ndarray, "_ S"]],
    weight: Float[np.ndarray, " R"],
    damping: Float[np.ndarray, " R"],
    design: Float[np.ndarray, "S D"],
    offset: Float[np.ndarray, " S"],
    ridge: Float[np.ndarray, "D D"],
    root: Float[np.ndarray, "D D"],
    dtype: type,
    *,
    poisson: bool,
) -> tuple[Float[np.ndarray, "R D"], Float[np.ndarray, " R"], Float[np.ndarray, " R"], float]:
    """One damped Newton step for every row of coefficients in the regression of `targets` on `design`.

    In the gauge of `root` the average Hessian is about the identity, so that conjugate gradients need no
    preconditioner. Returns the rows, their dampings, their log-normalizers, and the sum of loss and ridge.
    """
    inverse = np.linalg.inv(root)
    rows = rows @ root
    new_rows, new_damping, normalizer, nats = rows.copy(), damping.copy(), np.zeros(len(rows)), np.zeros(len(rows))
    with enable_x64(dtype is np.float64):
        common = [jnp.asarray(part, dtype) for part in (design @ inverse.T, offset, inverse @ ridge @ inverse.T)]
        for here in chunks_of(len(rows), len(design)):
            own = [part.astype(dtype) for part in (rows[here], targets(here), weight[here], damping[here])]
            results = _regress(*own, *common, poisson=poisson)
            new_rows[here], new_damping[here], normalizer[here], nats[here] = map(np.asarray, results)
    return new_rows @ inverse, new_damping, normalizer, float(nats.sum())


@partial(jax.jit, static_argnames="poisson")
def _regress(
    rows: Float[Array, "R D"],
    target: Float[Array, "R S"],
    weight: Float[Array, " R"],
    damping: Float[Array, " R"],
    design: Float[Array, "S D"],
    offset: Float[Array, " S"],
    ridge: Float[Array, "D D"],
    *,
    poisson: bool,
) -> tuple[Float[Array, "R D"], Float[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """`_update` on the device, for the rows of a chunk."""

    def loss(rows, logits):
        """Return the nats of every row, and its log-normalizer."""
        normalizer = jax.nn.logsumexp(logits, axis=1)
        if poisson:
            nats = jnp.exp(normalizer) - (target * logits).sum(1)
        else:  # a sum of terms none of which is negative
            nats = (target * (normalizer[:, None] - logits)).sum(1)
        return nats + ((rows @ ridge) * rows).sum(1) / 2, normalizer

    logits = rows @ design.T + offset
    before, normalizer = loss(rows, logits)
    gradient, hessian = jax.linearize(jax.grad(lambda x: loss(x, x @ design.T + offset)[0].sum()), rows)

    # Rows are independent, so the gradient of the sum is that of every row, and conjugate gradients run side by side.
    tiny = jnp.finfo(rows.dtype).tiny

    def conjugate_gradient(_, carry):
        step, residual, direction, square = carry
        curved = hessian(direction) + (damping * weight)[:, None] * direction
        length = (square / jnp.maximum((direction * curved).sum(1), tiny))[:, None]
        step, residual = step + length * direction, residual - length * curved
        following = (residual**2).sum(1)
        return step, residual, residual + (following / jnp.maximum(square, tiny))[:, None] * direction, following

    start = jnp.zeros_like(rows), -gradient, -gradient, (gradient**2).sum(1)
    step, *_ = jax.lax.fori_loop(0, CONJUGATE_GRADIENTS, conjugate_gradient, start)

    # Where the curvature vanishes a step is long or infinite, and its predicted decrease is beyond the precision.
    change = step @ design.T
    shorter = jnp.minimum(1, LONGEST / jnp.maximum(jnp.abs(change).max(1), tiny))[:, None]
    step, change = shorter * step, shorter * change

    # The whole step if it lowers the row's loss, else a part of it if that does, else none.
    after, new_normalizer = loss(rows + step, logits + change)
    whole = after <= before
    part, part_normalizer = jax.lax.cond(
        whole.all(), lambda: (before, normalizer), lambda: loss(rows + 0.3 * step, logits + 0.3 * change)
    )
    cases = [whole, part <= before]
    fraction = jnp.select(cases, [1.0, 0.3], 0.0).astype(rows.dtype)[:, None]
    return (
        jnp.where(fraction > 0, rows + fraction * step, rows),
        jnp.select(cases, [damping * 0.4, damping], jnp.minimum(damping * 8, 1e6)),
        jnp.select(cases, [new_normalizer, part_normalizer], normalizer),
        jnp.select(cases, [after, part], before),
    )
