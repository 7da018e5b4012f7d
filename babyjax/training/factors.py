"""BabyGPT v1 as two factors: logits W = A B^T + 1 b^T, where to start them, and the gauge that leaves W as it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from babyjax.models.babygpt import BabyGPT
from babyjax.training.statistics import DENSE_VOCAB, PairCounts

# What the first guess adds to every row of counts, spread as the unigram distribution, and the least it lets a token
# weigh: as shares of all counts, so that a start does not depend on how often a corpus is repeated.
PRIOR, LEAST = 7e-5, 5e-7
# The most directions taken from the SVD of a sparse matrix.
SPARSE_RANK = 256
# A loss not known yet: finite, as everything that is saved must be.
UNKNOWN = 1e200


class Factors(NamedTuple):
    """A, B and b: the embedding, the head transposed, and the head's bias or None."""

    embedding: Float[Array, "V D"] | Any  # or a NumPy array, float64 on the host
    head: Float[Array, "V D"] | Any
    bias: Float[Array, " V"] | Any | None

    def logits(self) -> Any:
        """W = A B^T + 1 b^T, [V, V]."""
        logits = self.embedding @ self.head.T
        return logits if self.bias is None else logits + self.bias

    def model(self, n_embd: int) -> BabyGPT:
        """The network with these parameters in float32, balanced, its width padded with zeros to `n_embd`."""
        padding = ((0, 0), (0, n_embd - self.embedding.shape[1]))
        balanced = balance(self)
        embedding, head = (np.pad(part.astype(np.float32), padding) for part in (balanced.embedding, balanced.head))
        bias = None if self.bias is None else jnp.asarray(self.bias, jnp.float32)
        return BabyGPT.from_parameters(jnp.asarray(embedding), jnp.asarray(head.T), bias)


class Descent(NamedTuple):
    """Where a descent on the exact loss is.

    `objective` is the loss plus the penalty, in nats, at or shortly before `factors`; `promise` is what the last step
    brought (a sweep) or promised (a Newton step). The dampings are by row of A, by row of B, and of both at once.
    """

    factors: Factors
    embedding_damping: Float[np.ndarray, " V"]
    head_damping: Float[np.ndarray, " V"]
    damping: Float[np.ndarray, ""]
    growth: Float[np.ndarray, ""]
    objective: Float[np.ndarray, ""]
    promise: Float[np.ndarray, ""]


def start_descent(factors: Factors) -> Descent:
    """Before the first step."""
    by_row = np.full(len(factors.embedding), 0.5)
    return Descent(factors, by_row, by_row, *(np.array(number) for number in (1.0, 2.0, UNKNOWN, UNKNOWN)))


def factors_of(model: BabyGPT) -> Factors:
    """The factors of a network, on the host in float64."""
    head = model.lm_head
    assert head is not None, "v1 has a head of its own"
    parts = model.token_embedding.embedding[...], head.kernel[...].T, None if head.bias is None else head.bias[...]
    return jax.tree.map(lambda part: np.asarray(part, np.float64), Factors(*parts))


def balance(factors: Factors) -> Factors:
    """The same logits in the gauge with A^T A = B^T B.

    There |A|^2 + |B|^2 is least over the gauge: twice the nuclear norm of A B^T.
    """
    (basis_a, r_a), (basis_b, r_b) = np.linalg.qr(factors.embedding), np.linalg.qr(factors.head)
    left, scale, right = np.linalg.svd(r_a @ r_b.T)
    root = np.sqrt(scale)
    return Factors(basis_a @ (left * root), basis_b @ (right.T * root), factors.bias)


def _unigram(pairs: PairCounts) -> Float[np.ndarray, " V"]:
    count = np.bincount(pairs.following, pairs.counts["train"], pairs.vocab_size)
    share = count / count.sum() + LEAST
    return share / share.sum()


def svd_start(pairs: PairCounts, n_embd: int, *, bias: bool) -> Factors:
    """No training yet, and not far: a weighted SVD of the log-ratio of smoothed counts to the unigram's prediction.

    log(1 + C_ij / (a u_j)) is as sparse as the counts. Cell (i, j) is weighted by w_i u_j, what it weighs in the loss
    around independence. Embeddings as factorised counts: Levy & Goldberg 2014.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import LinearOperator, aslinearoperator, svds

    vocab_size, count = pairs.vocab_size, pairs.counts["train"]
    contexts = pairs.context_totals("train")
    total, unigram = count.sum(), _unigram(pairs)
    row_scale = np.sqrt(np.maximum(contexts / total, LEAST))
    column_scale = np.sqrt(unigram)
    cells = row_scale[pairs.current] * np.log1p(count / (PRIOR * total * unigram[pairs.following]))
    cells *= column_scale[pairs.following]
    log_ratio = csr_matrix((cells, (pairs.current, pairs.following)), shape=(vocab_size, vocab_size))
    log_unigram = np.log(unigram)
    # Without a bias the unigram's logits have to be one of the directions.
    common = np.zeros((vocab_size, 1)) if bias else row_scale[:, None]
    if vocab_size <= DENSE_VOCAB:
        left, scale, right = np.linalg.svd(
            log_ratio.toarray() + common * (log_unigram * column_scale), full_matrices=False
        )
    else:
        offset = aslinearoperator(common) @ aslinearoperator((log_unigram * column_scale)[None])
        operator: LinearOperator = aslinearoperator(log_ratio) + offset
        left, scale, right = svds(operator, k=max(1, min(n_embd, SPARSE_RANK)), v0=np.ones(vocab_size), tol=1e-3)  # pyright: ignore[reportArgumentType]
        assert left is not None
        assert right is not None
    rank = min(n_embd, len(scale))
    root = np.sqrt(scale[:rank])
    embedding, head = np.zeros((vocab_size, n_embd)), np.zeros((vocab_size, n_embd))
    embedding[:, :rank] = left[:, :rank] * root / row_scale[:, None]
    head[:, :rank] = right[:rank].T * root / column_scale[:, None]
    # Directions that are zero in both factors would stay so: the gradient of each is a multiple of the other.
    head[:, rank:] = np.random.default_rng(0).normal(size=(vocab_size, n_embd - rank))
    return Factors(embedding, head, log_unigram if bias else None)


def random_start(pairs: PairCounts, n_embd: int, seed: int, *, bias: bool) -> Factors:
    """Normal factors, small, and the unigram's logits as the bias."""
    random = np.random.default_rng(seed)
    embedding, head = random.normal(0, 0.3, (2, pairs.vocab_size, n_embd))
    return Factors(embedding, head, np.log(_unigram(pairs)) if bias else None)


def perturbed(factors: Factors, seed: int) -> Factors:
    """`factors` with half their own size in noise: where another minimum may be near."""
    random = np.random.default_rng(seed)

    def shake(part: np.ndarray) -> np.ndarray:
        return part + 0.5 * part.std() * random.normal(size=part.shape)

    embedding, head, bias = balance(factors)
    return Factors(shake(np.asarray(embedding)), shake(np.asarray(head)), bias)
