"""Weights of linear mixtures, by expectation-maximization (Dempster, Laird & Rubin 1977; Jelinek & Mercer 1980).

What is needed of the parts is their losses token by token. No weight is judged on a token that it was fitted to: in a
cross-fit each half of a text gets the weights of the other half.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from babyjax.data.batches import Split
from babyjax.evaluation.losses import ContextEvaluator, Nats
from babyjax.models.base import LanguageModel
from babyjax.models.mixture import Mixture

MAX_ITERATIONS, TOLERANCE = 1000, 1e-8  # nats per token

PartNats = Float[np.ndarray, "L P"]
LogWeights = Float[np.ndarray, "C P"]


def fit_weights(nats: PartNats, kind: Int[np.ndarray, " L"], classes: int) -> LogWeights:
    """Return the log-weights of each class of contexts that are best for these tokens, `kind` being the classes of the
    contexts. Classes from `classes` on share the last row.

    A Dirichlet prior, worth a token for each part, draws each class to the weights that are best for all tokens, and
    those to equal ones. So no weight is 0.
    """
    parts, kind = nats.shape[1], np.minimum(kind, classes - 1)
    prior = np.ones(parts) if classes == 1 else parts * np.exp(fit_weights(nats, np.zeros_like(kind), 1)[0])
    likelihood = np.exp(nats.min(axis=1, keepdims=True) - nats)
    cells = (kind[:, None] * parts + np.arange(parts)).ravel()
    weights, before = np.tile(prior / parts, (classes, 1)), np.inf
    for _ in range(MAX_ITERATIONS):
        share = weights[kind] * likelihood
        total = share.sum(axis=1, keepdims=True)
        explained = prior + np.bincount(cells, (share / total).ravel(), classes * parts).reshape(classes, parts)
        weights = explained / explained.sum(axis=1, keepdims=True)
        loss = -np.log(total).mean()
        if before - loss < TOLERANCE:
            break
        before = loss
    return np.log(weights)


def mixed_nats(nats: PartNats, kind: Int[np.ndarray, " L"], log_weights: LogWeights) -> Float[np.ndarray, " L"]:
    """Return -log p of each token under the mixture."""
    return -np.logaddexp.reduce(log_weights[np.minimum(kind, len(log_weights) - 1)] - nats, axis=1)


def cross_fitted(nats: PartNats, kind: Int[np.ndarray, " L"], classes: int) -> Float[np.ndarray, " L"]:
    """Return -log p of each token under the mixture whose weights were fitted on the half it is not in."""
    half = len(nats) // 2
    halves = slice(None, half), slice(half, None)
    return np.concatenate(
        [
            mixed_nats(nats[judged], kind[judged], fit_weights(nats[fitted], kind[fitted], classes))
            for judged, fitted in (halves, halves[::-1])
        ]
    )


class MixtureEvaluator:
    """Losses of a mixture: cross-fitted on the validation split, which its weights come from, and by its own weights,
    in windows of its own, on the training split.

    On the validation split each part reads windows of its own, `stride` apart, or half a block if that is None.
    """

    def __init__(
        self, split: Split, byte_lengths: Int[np.ndarray, " V"], stride: int | None = None, tokens: int | None = None
    ):
        self.split, self.byte_lengths, self.stride, self.tokens = split, byte_lengths, stride, tokens

    def part_nats(
        self, parts: Sequence[LanguageModel], progress: Callable[[str, float], None] = lambda split, fraction: None
    ) -> tuple[PartNats, Int[np.ndarray, " L"]]:
        """Return the losses of the parts on every token of the validation split, and the certainty before it."""
        nats, certainty = [], []
        for index, part in enumerate(parts):
            evaluator = self.windows(part)
            nats.append(
                evaluator.token_nats(
                    part, "val", lambda split, share, index=index: progress(split, (index + share) / len(parts))
                )
            )
            certainty.append(evaluator.token_certainty(part, "val"))
        return np.stack(nats, axis=1), np.max(certainty, axis=0)

    def token_nats(
        self, model: Mixture, name: str, progress: Callable[[str, float], None] = lambda split, fraction: None
    ) -> Float[np.ndarray, " T"]:
        """Return -log p of every token of a split but the first, in nats."""
        if name == "val":
            nats, kind = self.part_nats(model.parts, progress)
            return cross_fitted(nats, kind, len(model.log_weights[...]))
        return self.windows(model).token_nats(model, name, progress)

    def __call__(
        self,
        model: LanguageModel,
        splits: Sequence[str] = ("train", "val"),
        progress: Callable[[str, float], None] = lambda split, fraction: None,
    ) -> dict[str, Nats]:
        """Return the loss of each of `splits`; calls `progress(split, fraction)` on the way."""
        assert isinstance(model, Mixture)
        losses = {}
        for name in splits:
            if name == "val":
                losses[name] = self.of_tokens(self.token_nats(model, name, progress), name)
            else:
                losses |= self.windows(model, self.tokens)(model, [name], progress)
        return losses

    def of_tokens(self, nats: Float[np.ndarray, " T"], name: str) -> Nats:
        """Add up the losses of every token of a split but the first."""
        return Nats.of_tokens(nats, int(self.byte_lengths[getattr(self.split, name)[1:]].sum()))

    def windows(self, model: LanguageModel, tokens: int | None = None) -> ContextEvaluator:
        """Return the evaluator of one part, or of the mixture as one model."""
        stride = self.stride or max(1, (model.max_length or 1) // 2)
        return ContextEvaluator.for_model(model, self.split, self.byte_lengths, stride, tokens)
