"""BabyGPT v1 as two factors, logits W = A B^T + 1 b^T: where to start them, and the gauge that leaves W as it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.sparse.linalg import aslinearoperator, svds

from babyjax.counts.pairs import DENSE_VOCAB, PairCounts
from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.models.base import LanguageModel
from babyjax.trees import named_arrays

# As shares of all counts, so that a fit does not depend on how often a corpus is repeated: what the first guess adds
# to every row of counts, spread as the unigram distribution, and the least weight of a token.
PRIOR, LEAST_SHARE = 7e-5, 5e-7
# The most directions taken from the SVD of a sparse matrix.
SPARSE_RANK = 256
# A loss that is not known yet. It is finite, as everything that is saved must be.
UNKNOWN = 1e200


class Factors(NamedTuple):
    """A, B and b: the embedding, the head transposed, and the bias of the head or None. JAX or NumPy arrays."""

    embedding: Float[Any, "V D"]
    head: Float[Any, "V D"]
    bias: Float[Any, " V"] | None

    def logits(self) -> Float[Any, "V V"]:
        """Return W."""
        logits = self.embedding @ self.head.T
        return logits if self.bias is None else logits + self.bias

    def squares(self) -> Any:
        """Return |A|^2 + |B|^2."""
        return (self.embedding**2).sum() + (self.head**2).sum()

    def model(self, n_embd: int) -> BabyGPT:
        """Return the network with these parameters in float32, balanced and padded with zeros to `n_embd`."""
        padding = ((0, 0), (0, n_embd - self.embedding.shape[1]))
        embedding, head, bias = jax.tree.map(np.float32, balance(self))
        embedding, head, bias = jax.tree.map(jnp.asarray, (np.pad(embedding, padding), np.pad(head, padding), bias))
        return BabyGPT.from_parameters(embedding, head.T, bias)


def factors_of(model: LanguageModel) -> Factors:
    """Return the factors of a v1 network, on the host in float64. Raises: ConfigError if it is another model."""
    if not (isinstance(model, BabyGPT) and model.config.is_v1):
        raise ConfigError("only BabyGPT v1 is a product of two factors")
    arrays = {name: np.asarray(array, np.float64) for name, array in named_arrays(model).items()}
    return Factors(arrays["token_embedding/embedding"], arrays["lm_head/kernel"].T, arrays.get("lm_head/bias"))


def balance(factors: Factors) -> Factors:
    """Return the same logits in the gauge with A^T A = B^T B.

    There |A|^2 + |B|^2 is least over the gauge: twice the nuclear norm of A B^T.
    """
    (basis_a, r_a), (basis_b, r_b) = np.linalg.qr(factors.embedding), np.linalg.qr(factors.head)
    left, scale, right = np.linalg.svd(r_a @ r_b.T)
    root = np.sqrt(scale)
    return Factors(basis_a @ (left * root), basis_b @ (right.T * root), factors.bias)


def _unigram(pairs: PairCounts) -> Float[np.ndarray, " V"]:
    count = np.bincount(pairs.following, pairs.counts["train"], pairs.vocab_size)
    share = count / count.sum() + LEAST_SHARE
    return share / share.sum()


def svd_factors(pairs: PairCounts, n_embd: int, *, bias: bool) -> Factors:
    """Return a weighted SVD of the log-ratio of smoothed counts to the unigram's prediction: no training, yet close.

    log(1 + C_ij / (a u_j)) is as sparse as the counts. Cell (i, j) is weighted by w_i u_j, its weight in the loss
    around independence. Embeddings as factorized counts: Levy & Goldberg 2014.
    """
    vocab_size, count, contexts = pairs.vocab_size, pairs.counts["train"], pairs.context_totals("train")
    total, unigram = count.sum(), _unigram(pairs)
    row_scale, column_scale = np.sqrt(np.maximum(contexts / total, LEAST_SHARE)), np.sqrt(unigram)
    cells = row_scale[pairs.current] * np.log1p(count / (PRIOR * total * unigram[pairs.following]))
    cells *= column_scale[pairs.following]
    log_ratio = csr_array((cells, (pairs.current, pairs.following)), shape=(vocab_size, vocab_size))
    # Without a bias the unigram's logits have to be one of the directions.
    common, log_unigram = np.zeros(vocab_size) if bias else row_scale, np.log(unigram)
    if vocab_size <= DENSE_VOCAB:
        matrix = log_ratio.toarray() + np.outer(common, log_unigram * column_scale)
        left, scale, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        offset = aslinearoperator(common[:, None]) @ aslinearoperator((log_unigram * column_scale)[None])
        operator: Any = aslinearoperator(log_ratio) + offset
        tolerance: Any = 1e-3
        parts: Any = svds(operator, max(1, min(n_embd, SPARSE_RANK)), v0=np.ones(vocab_size), tol=tolerance)
        left, scale, right = parts
    rank = min(n_embd, len(scale))
    root = np.sqrt(scale[:rank])
    embedding, head = np.zeros((vocab_size, n_embd)), np.zeros((vocab_size, n_embd))
    embedding[:, :rank] = left[:, :rank] * root / row_scale[:, None]
    head[:, :rank] = right[:rank].T * root / column_scale[:, None]
    # A direction that is zero in both factors would stay so: the gradient of each is a multiple of the other.
    head[:, rank:] = np.random.default_rng(0).normal(size=(vocab_size, n_embd - rank))
    return Factors(embedding, head, log_unigram if bias else None)


def random_factors(pairs: PairCounts, n_embd: int, seed: int, *, bias: bool) -> Factors:
    """Return normal factors, with the unigram's logits as the bias.

    Small and large ones lead to different minima: their standard deviation is drawn too, from 0.1 to 3.
    """
    random = np.random.default_rng(seed)
    embedding, head = random.normal(0, _log_uniform(random, 0.1, 3.0), (2, pairs.vocab_size, n_embd))
    return Factors(embedding, head, np.log(_unigram(pairs)) if bias else None)


def perturbed(factors: Factors, seed: int) -> Factors:
    """Return `factors` plus noise of half to twice their standard deviation: another minimum may be near."""
    random = np.random.default_rng(seed)
    embedding, head, bias = balance(factors)
    spread = _log_uniform(random, 0.5, 2.0)
    embedding, head = (part + spread * part.std() * random.normal(size=part.shape) for part in (embedding, head))
    return Factors(embedding, head, bias)


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))
