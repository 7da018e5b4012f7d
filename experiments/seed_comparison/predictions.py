"""What the models predict: tables of log-probabilities, samples, and how far apart two models are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

import babyjax
from babyjax import BabyGPT, Bigram, LanguageModel
from experiments.seed_comparison.study import Study

SHOWN = 32  # characters in a picture of a matrix


@jax.jit
def _logits(model: LanguageModel, contexts: jax.Array) -> jax.Array:
    return model(contexts[:, None])[:, 0]


def logits_of(model: LanguageModel) -> np.ndarray:
    """Return the logits after every token: float32[V, V]."""
    contexts = jnp.arange(model.vocab_size)
    return np.concatenate([_logits(model, contexts[first : first + 512]) for first in range(0, len(contexts), 512)])


def log_probabilities(model: LanguageModel) -> np.ndarray:
    """Return the log-probabilities after every token: float32[V, V]."""
    return log_softmax(logits_of(model), axis=1)


def parameters_of(model: BabyGPT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embedding, kernel and bias in float64; a bias of zeros if there is none."""
    head = model.lm_head
    assert head is not None
    bias = np.zeros(model.vocab_size) if head.bias is None else head.bias[...]
    embedding, kernel = model.token_embedding.embedding[...], head.kernel[...]
    return np.asarray(embedding, np.float64), np.asarray(kernel, np.float64), np.asarray(bias, np.float64)


def rank_of(model: BabyGPT) -> int:
    """Return the rank of the V x V matrix of logits, from its factors."""
    embedding, kernel, bias = parameters_of(model)
    left = np.linalg.qr(np.column_stack([embedding, np.ones(len(embedding))])).R
    right = np.linalg.qr(np.column_stack([kernel.T, bias])).R
    return int(np.linalg.matrix_rank(left @ right.T, rtol=1e-5))


def divergence(study: Study) -> float:
    """Return the mean KL divergence over the training text between BabyGPT trained on counts and by AdamW, in nats."""
    ours, theirs = log_probabilities(study.counts.model), log_probabilities(study.adamw.model)
    weight = study.count_matrix.sum(1) / study.count_matrix.sum()
    return float(weight @ (np.exp(ours) * (ours - theirs)).sum(1))


def generation(study: Study) -> dict[str, Any]:
    """Compare token frequencies in samples with the softmax, and the bigram's own division; sample a text of each."""
    vocab_size, tokenizer, counts = study.vocab_size, study.task.tokenizer, study.count_matrix
    draws = min(study.effort.draws, (1 << 28) // vocab_size)  # made at once
    context, key = int(np.bincount(study.tokens).argmax()), jax.random.key(study.config.train.seed)
    sampled = babyjax.generate(study.adamw.model, np.full((draws, 1), context, np.int32), key, 1)
    frequencies = np.bincount(np.asarray(sampled)[:, 0], minlength=vocab_size) / draws
    softmax = np.exp(log_probabilities(study.adamw.model)[context])
    totals = counts.sum(1)
    seen = np.flatnonzero(totals)[:1024]
    by_hand = counts[seen] / np.maximum(totals[seen, None], 1.0)
    newline = "\n" in tokenizer.decode(np.arange(vocab_size))
    prompt = tokenizer.encode("\n") if newline else study.tokens[:1]
    models = {
        "count bigram": study.unsmoothed,
        "BabyGPT, AdamW": study.adamw.model,
        "BabyGPT, on counts": study.counts.model,
    }
    texts = {name: babyjax.generate(model, prompt[None], key, study.effort.sample) for name, model in models.items()}
    return {
        "total_variation": float(np.abs(frequencies - softmax).sum() / 2),
        "expected_total_variation": float(np.sqrt(2 * softmax * (1 - softmax) / (np.pi * draws)).sum() / 2),
        "draws": draws,
        "rows_by_hand": len(seen),
        "by_hand_difference": float(np.abs(by_hand - np.exp(log_probabilities(study.unsmoothed)[seen])).max()),
        "contexts_without_counts": int((totals == 0).sum()),
        "samples": {name: tokenizer.decode(np.asarray(tokens)[0]) for name, tokens in texts.items()},
    }


def equivalence(study: Study) -> dict[str, Any]:
    """Measure what BabyGPT of the vocabulary's width can be, and what training makes of it."""
    task, size = study.merged, study.merged.pairs.vocab_size
    bigram = log_probabilities(Bigram.from_tokens(task.split.train, size))
    equal = BabyGPT.from_parameters(jnp.asarray(bigram), jnp.eye(size), jnp.zeros(size))
    fit = babyjax.fit_counts(task.pairs, size - 1, bias=study.model_config.head_bias, tolerance=1e-4)
    adamw_loss, counts_loss = (task.evaluate(model)["train"].per_token for model in (study.wide(), fit.model))
    return {
        "vocab_size": size,
        "probability_difference": float(np.abs(np.exp(log_probabilities(equal)) - np.exp(bigram)).max()),
        "adamw_gap": adamw_loss - task.entropy,
        "counts_gap": counts_loss - task.entropy,
        "correlation": correlation(study),
    }


def correlation(study: Study) -> float:
    """Correlate BabyGPT's log-probabilities and the log frequencies over the pairs seen, weighted by counts."""
    seen = np.nonzero(study.count_matrix)
    count = study.count_matrix[seen]
    frequencies = np.log(count / study.count_matrix.sum(1)[seen[0]])
    covariance = np.cov(log_probabilities(study.adamw.model)[seen], frequencies, fweights=count)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def matrices(study: Study) -> dict[str, Any]:
    """Collect what the pictures show: the most frequent tokens, their counts, and BabyGPT's predictions."""
    weight = np.bincount(study.tokens, minlength=study.vocab_size) / len(study.tokens)
    shown = np.sort(np.argsort(-weight, kind="stable")[:SHOWN])
    embedding = parameters_of(study.adamw.model)[0]
    centered = embedding - weight @ embedding
    _, spread, axes = np.linalg.svd(centered * np.sqrt(weight)[:, None], full_matrices=False)
    plane = np.pad(centered[shown] @ axes[:2].T, ((0, 0), (0, max(0, 2 - len(axes)))))
    names = [study.task.tokenizer.decode(np.array([token])) for token in shown]
    return {
        "characters": [f"{token:02x}" if name == "\ufffd" else name for name, token in zip(names, shown, strict=True)],
        "share_of_text": float(weight[shown].sum()),
        "counts": study.count_matrix[np.ix_(shown, shown)].tolist(),
        "totals": study.count_matrix[shown].sum(1).tolist(),
        "babygpt": log_probabilities(study.adamw.model)[np.ix_(shown, shown)].round(4).tolist(),
        "embedding": plane.round(4).tolist(),
        "embedding_share": float((spread[:2] ** 2).sum() / (spread**2).sum()),
        "frequency": weight[shown].round(6).tolist(),
    }
