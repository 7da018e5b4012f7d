"""Alternating Newton sweeps over the exact loss of BabyGPT v1, in chunks of rows: memory is bounded at any vocabulary.

With B held, every row of A is a softmax regression of its own; with A held, every row of B is a Poisson regression of
its own (the multinomial-Poisson transformation, arXiv 1707.08538). Each gets one damped Newton step from a few
conjugate gradients, all rows of a chunk at once. Before, the gauge is chosen in which the average Hessian is about the
identity, so that conjugate gradients need no preconditioner.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from babyjax.training.factors import LEAST, Descent, Factors, balance
from babyjax.training.statistics import PairCounts

# Cells worked on at once: a few arrays of them fit the cache of a CPU.
CHUNK_CELLS = 1 << 20
CONJUGATE_GRADIENTS = 3
# How far one step may move a logit, in nats.
LONGEST = 10.0


class Chunk(NamedTuple):
    """Some rows of a matrix of targets: which, and their entries."""

    rows: Int[np.ndarray, " R"]
    entry_row: Int[np.ndarray, " P"]
    entry_column: Int[np.ndarray, " P"]
    entry: Float[np.ndarray, " P"]


def chunked(
    row: Int[np.ndarray, " P"], column: Int[np.ndarray, " P"], entry: Float[np.ndarray, " P"], rows: int, columns: int
) -> Iterator[Chunk]:
    """A sparse matrix in chunks of `CHUNK_CELLS` cells, every chunk of one shape: the last overlaps the one before."""
    order = np.argsort(row, kind="stable")
    row, column, entry = row[order], column[order], entry[order]
    height = min(rows, max(1, CHUNK_CELLS // columns))
    starts = [min(start, rows - height) for start in range(0, rows, height)]
    edges = [np.searchsorted(row, (start, start + height)) for start in starts]
    longest = max(end - begin for begin, end in edges)
    for start, (begin, end) in zip(starts, edges, strict=True):
        padding = (0, longest - (end - begin))
        yield Chunk(
            np.arange(start, start + height),
            np.pad(row[begin:end] - start, padding).astype(np.int32),
            np.pad(column[begin:end], padding).astype(np.int32),
            np.pad(entry[begin:end], padding),
        )


class Targets(NamedTuple):
    """w_i P_ij with add-k smoothing, over the contexts seen, in chunks of rows and of columns.

    `contexts` are the tokens i, `weight` their w_i, `base` what smoothing adds to every cell of their row; `unigram` is
    the column marginal. A context never seen has no weight, and its row is left alone.
    """

    contexts: Int[np.ndarray, " S"]
    weight: Float[np.ndarray, " S"]
    base: Float[np.ndarray, " S"]
    unigram: Float[np.ndarray, " V"]
    entry_row: Int[np.ndarray, " P"]
    entry_column: Int[np.ndarray, " P"]
    entry: Float[np.ndarray, " P"]
    by_row: list[Chunk]
    by_column: list[Chunk]
    dtype: type

    def dense(self) -> tuple[Float[np.ndarray, "V V"], Float[np.ndarray, " V"]]:
        """The matrix w_i P_ij over the whole vocabulary, and w."""
        vocab_size = len(self.unigram)
        matrix, weight = np.zeros((vocab_size, vocab_size)), np.zeros(vocab_size)
        weight[self.contexts] = self.weight
        matrix[self.contexts] = self.base[:, None]
        matrix[self.contexts[self.entry_row], self.entry_column] += self.entry
        return matrix, weight

    def entropy(self) -> float:
        """sum_i w_i H(P_i) in nats: the floor of the loss."""
        vocab_size = len(self.unigram)
        weight = self.weight[self.entry_row]
        cell = self.base[self.entry_row] + self.entry
        unseen = vocab_size - np.bincount(self.entry_row, minlength=len(self.weight))
        seen = -(cell * np.log(cell / weight)).sum()
        share = np.maximum(self.base / self.weight, 1e-300)
        return float(seen - (unseen * self.base * np.log(share)).sum())


def smoothed_targets(pairs: PairCounts, smoothing: float, dtype: type) -> Targets:
    """The targets of the training split."""
    seen = pairs.counts["train"] > 0
    current, following, count = pairs.current[seen], pairs.following[seen], pairs.counts["train"][seen]
    totals, vocab_size = pairs.context_totals("train"), pairs.vocab_size
    contexts = np.flatnonzero(totals)
    weight = totals[contexts] / totals.sum()
    scale = weight / (totals[contexts] + smoothing * vocab_size)
    row = np.searchsorted(contexts, current)
    entry = scale[row] * count
    unigram = np.bincount(following, entry, vocab_size) + (smoothing * scale).sum()
    return Targets(
        contexts,
        weight,
        smoothing * scale,
        np.maximum(unigram, LEAST),
        row,
        following,
        entry,
        list(chunked(row, following, entry.astype(dtype), len(contexts), vocab_size)),
        list(chunked(following, row, entry.astype(dtype), vocab_size, len(contexts))),
        dtype,
    )


def _metric_root(design: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """L with L L^T the weighted second moment of the rows of `design`, a little of its trace added."""
    moment = (design.T * weight) @ design
    width = len(moment)
    return np.linalg.cholesky(moment + (1e-6 * np.trace(moment) / max(width, 1) + 1e-30) * np.eye(width))


def _pass(
    rows: np.ndarray,
    design: np.ndarray,
    offset: np.ndarray,
    base: np.ndarray,
    chunks: list[Chunk],
    total: np.ndarray,
    damping: np.ndarray,
    ridge: np.ndarray,
    dtype: type,
    *,
    poisson: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A damped Newton step for every row: the rows, their dampings, the log-normalisers, and the loss and ridge."""
    new_rows, new_damping = rows.copy(), damping.copy()
    normaliser, nats = np.zeros(len(rows)), np.zeros(len(rows))
    on_device = [jnp.asarray(part, dtype) for part in (design, offset, ridge)]
    for chunk in chunks:
        here = chunk.rows
        results = _regress(
            rows[here].astype(dtype),
            *on_device,
            (base if poisson else base[here, None]).astype(dtype),
            *chunk[1:],
            total[here].astype(dtype),
            damping[here].astype(dtype),
            poisson=poisson,
        )
        new_rows[here], new_damping[here], normaliser[here], nats[here] = (np.asarray(part) for part in results)
    return new_rows, new_damping, normaliser, float(nats.sum())


@partial(jax.jit, static_argnames="poisson")
def _regress(
    rows: Float[Array, "R D"],
    design: Float[Array, "S D"],
    offset: Float[Array, " S"],
    ridge: Float[Array, "D D"],
    base: Float[Array, "#R S"] | Float[Array, "R 1"] | Float[Array, " S"],
    entry_row: Int[Array, " P"],
    entry_column: Int[Array, " P"],
    entry: Float[Array, " P"],
    total: Float[Array, " R"],
    damping: Float[Array, " R"],
    *,
    poisson: bool,
):
    shape = len(rows), len(design)
    target = jnp.broadcast_to(base, shape).at[entry_row, entry_column].add(entry)

    def loss(rows, logits):
        """Nats of every row, and its log-normaliser."""
        normaliser = jax.nn.logsumexp(logits, axis=1)
        if poisson:
            nats = jnp.exp(normaliser) - (target * logits).sum(1)
        else:  # a sum of terms none of which is negative
            nats = (target * (normaliser[:, None] - logits)).sum(1)
        return nats + ((rows @ ridge) * rows).sum(1) / 2, normaliser

    logits = rows @ design.T + offset
    before, normaliser = loss(rows, logits)
    mean = jnp.exp(logits) if poisson else total[:, None] * jnp.exp(logits - normaliser[:, None])

    def curvature(direction):
        change = mean * (direction @ design.T)
        if not poisson:
            change -= mean * (change.sum(1) / total)[:, None]
        return change @ design + direction @ ridge + (damping * total)[:, None] * direction

    def conjugate_gradient(_, carry):
        step, residual, direction, square = carry
        curved = curvature(direction)
        length = square / jnp.maximum((direction * curved).sum(1), tiny)
        step += length[:, None] * direction
        residual -= length[:, None] * curved
        following = (residual**2).sum(1)
        direction = residual + (following / jnp.maximum(square, tiny))[:, None] * direction
        return step, residual, direction, following

    tiny = jnp.finfo(rows.dtype).tiny
    descent = (target - mean) @ design - rows @ ridge
    start = jnp.zeros_like(rows), descent, descent, (descent**2).sum(1)
    step = jax.lax.fori_loop(0, CONJUGATE_GRADIENTS, conjugate_gradient, start)[0]

    # Where the curvature vanishes a step is long, or infinite, and what it promises is beyond the numbers' precision.
    change = step @ design.T
    shorter = jnp.minimum(1, LONGEST / jnp.maximum(jnp.abs(change).max(1), tiny))[:, None]
    step, change = shorter * step, shorter * change

    # The whole step where it lowers the row's loss, else a part of it where that does, else none.
    after, new_normaliser = loss(rows + step, logits + change)
    whole = after <= before
    part, part_normaliser = jax.lax.cond(
        whole.all(), lambda: (before, normaliser), lambda: loss(rows + 0.3 * step, logits + 0.3 * change)
    )
    some = ~whole & (part <= before)
    fraction = jnp.where(whole, 1.0, jnp.where(some, 0.3, 0.0)).astype(rows.dtype)[:, None]
    damping = jnp.where(whole, damping * 0.4, jnp.where(some, damping, jnp.minimum(damping * 8, 1e6)))
    normaliser = jnp.where(whole, new_normaliser, jnp.where(some, part_normaliser, normaliser))
    nats = jnp.where(whole, after, jnp.where(some, part, before))
    return jnp.where(fraction > 0, rows + fraction * step, rows), damping, normaliser, nats


def sweep(state: Descent, targets: Targets, penalty: float) -> Descent:
    """One pass over A, one over B (and b). `objective` is that between the two: the loss plus the penalty."""
    embedding, head, bias = jax.tree.map(np.array, state.factors)
    dampings = state.embedding_damping.copy(), state.head_damping.copy()
    contexts, weight = targets.contexts, targets.weight

    # A shift common to the rows of B only shifts each row of W, so that the design may be centred.
    shift = targets.unigram @ head / targets.unigram.sum()
    design = head - shift
    root = _metric_root(design, targets.unigram)
    inverse = np.linalg.inv(root)
    rows, dampings[0][contexts], log_normaliser, nats = _pass(
        embedding[contexts] @ root,
        design @ inverse.T,
        np.zeros(len(head)) if bias is None else bias,
        targets.base,
        targets.by_row,
        weight,
        dampings[0][contexts],
        penalty * inverse @ inverse.T,
        targets.dtype,
        poisson=False,
    )
    embedding[contexts] = rows @ inverse
    log_normaliser += embedding[contexts] @ shift
    unseen = np.delete(embedding, contexts, axis=0)
    objective = nats + penalty / 2 * ((unseen**2).sum() + (head**2).sum())

    if bias is not None and not penalty:  # W is the same, and the design centred
        centre = weight @ embedding[contexts]
        embedding -= centre
        bias += head @ centre
    design, columns = embedding[contexts], head
    root = _metric_root(design, weight)
    ridge = penalty * np.eye(len(root))
    if bias is not None:  # it has a metric of its own, and no penalty
        design, columns = np.column_stack([design, np.ones(len(design))]), np.column_stack([head, bias])
        root, ridge = (np.pad(matrix, (0, 1)) for matrix in (root, ridge))
        root[-1, -1] = 1
    inverse = np.linalg.inv(root)
    columns, head_damping, _, _ = _pass(
        columns @ root,
        design @ inverse.T,
        np.log(weight) - log_normaliser,
        targets.base,
        targets.by_column,
        targets.unigram,
        dampings[1],
        inverse @ ridge @ inverse.T,
        targets.dtype,
        poisson=True,
    )
    columns = columns @ inverse
    factors = Factors(embedding, columns[:, : head.shape[1]], None if bias is None else columns[:, -1])
    return state._replace(
        factors=balance(factors),
        embedding_damping=dampings[0],
        head_damping=head_damping,
        objective=np.array(objective),
        promise=np.array(state.objective - objective),
    )
