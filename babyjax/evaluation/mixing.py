"""Weights of linear mixtures that are best for a text.

What is needed of the parts is their losses token by token, and what an n-gram among them knows of each context. In a
cross-fit each half of a text gets the weights of the other half: none is judged on a token that it was fitted to.
"""

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Float, Int
from scipy.special import log_softmax

from babyjax.data.batches import Split
from babyjax.evaluation.losses import ContextEvaluator, Nats
from babyjax.models.base import LanguageModel
from babyjax.models.mixture import features, most_known
from babyjax.progress import Progress, silent

PartNats = Float[np.ndarray, "L P"]
Knowledge = Float[np.ndarray, "L 3"]
Gate = Float[np.ndarray, "F P"]
MAX_ITERATIONS = 1000


def fit_gate(nats: PartNats, knowledge: Knowledge, size: int) -> Gate:
    """Return the gate of a mixture, of `size` features, that is most likely for these tokens, as L-BFGS finds it.

    It starts from equal weights, and there may be another maximum. A standard normal prior keeps the numbers finite
    and, for a short text, the weights about equal. Tokens that no part thought possible say nothing.
    """
    possible = np.isfinite(nats).any(axis=1)
    nats, inputs = nats[possible], features(knowledge[possible])[:, :size]
    # L-BFGS needs ten times as many steps without: the features are correlated, and of several sizes.
    curvature = inputs.T @ inputs / nats.shape[1] + np.eye(size)
    to_gate = np.linalg.inv(np.linalg.cholesky(curvature)).T
    inputs = inputs @ to_gate

    def objective(flat: Float[np.ndarray, " N"]) -> tuple[float, Float[np.ndarray, " N"]]:
        white = flat.reshape(size, -1)
        gate, log_weights = to_gate @ white, log_softmax(inputs @ white, axis=1)
        total = np.logaddexp.reduce(log_weights - nats, axis=1, keepdims=True)
        gradient = inputs.T @ (np.exp(log_weights) - np.exp(log_weights - nats - total)) + to_gate.T @ gate
        return (gate**2).sum() / 2 - total.sum(), gradient.ravel()

    start = np.zeros(size * nats.shape[1])
    found = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS, "ftol": 1e-9}
    )
    return to_gate @ found.x.reshape(size, -1)


def mixed_nats(nats: PartNats, knowledge: Knowledge, gate: Gate) -> Float[np.ndarray, " L"]:
    """Return -log p of each token under the mixture."""
    return -np.logaddexp.reduce(log_softmax(features(knowledge)[:, : len(gate)] @ gate, axis=1) - nats, axis=1)


def cross_fitted(nats: PartNats, knowledge: Knowledge, size: int) -> Float[np.ndarray, " L"]:
    """Return -log p of each token under the mixture whose gate was fitted on the half it is not in."""
    half = len(nats) // 2
    halves = slice(None, half), slice(half, None)
    return np.concatenate(
        [
            mixed_nats(nats[judged], knowledge[judged], fit_gate(nats[fitted], knowledge[fitted], size))
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

    def part_nats(self, parts: Sequence[LanguageModel], progress: Progress = silent) -> tuple[PartNats, Knowledge]:
        """Return the losses of the parts on every token of the validation split, and the knowledge before it."""
        nats, knowledge = [], []
        for index, part in enumerate(parts):
            evaluator = self.windows(part)
            nats.append(
                evaluator.token_nats(
                    part, "val", lambda split, share, index=index: progress(split, (index + share) / len(parts))
                )
            )
            knowledge.append(evaluator.token_knowledge(part, "val"))
        return np.stack(nats, axis=1), most_known(knowledge)

    def token_nats(self, model: LanguageModel, name: str, progress: Progress = silent) -> Float[np.ndarray, " T"]:
        """Return -log p of every token of a split but the first, in nats."""
        if name == "val":
            return cross_fitted(*self.part_nats(model.parts, progress), model.gate_size)
        return self.windows(model).token_nats(model, name, progress)

    def __call__(
        self,
        model: LanguageModel,
        splits: Sequence[str] = ("train", "val"),
        progress: Progress = silent,
    ) -> dict[str, Nats]:
        """Return the loss of each of `splits`; calls `progress(split, fraction)` on the way."""
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
