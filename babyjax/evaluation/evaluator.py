"""The evaluator that fits a model."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from babyjax.counts.pairs import PairCounts
from babyjax.data.batches import Split
from babyjax.evaluation.losses import ContextEvaluator, ExactEvaluator, Nats
from babyjax.evaluation.mixing import MixtureEvaluator
from babyjax.models.base import LanguageModel
from babyjax.models.mixture import Mixture


@runtime_checkable
class Evaluator(Protocol):
    """Returns the loss of each split; calls `progress(split, fraction)` on the way."""

    def __call__(
        self, model: LanguageModel, splits: Sequence[str] = ..., progress: Callable[[str, float], None] = ...
    ) -> dict[str, Nats]: ...


def make_evaluator(
    model: LanguageModel,
    pairs: PairCounts,
    split: Split,
    byte_lengths: Int[np.ndarray, " V"],
    stride: int | None = None,
    tokens: int | None = None,
) -> Evaluator:
    """Return the evaluator of a model, of which only shapes are needed.

    It is exact for a model of one previous token. For any other it slides windows, `stride` apart, and with `tokens` it
    scores about that many of each split; a model that reads texts of any length is evaluated on every token.
    """
    if isinstance(model, Mixture):
        return MixtureEvaluator(split, byte_lengths, stride, tokens)
    if model.context_length == 1:
        return ExactEvaluator(pairs, byte_lengths)
    return ContextEvaluator.for_model(model, split, byte_lengths, stride, tokens)


def token_nats(
    model: LanguageModel,
    split: Split,
    byte_lengths: Int[np.ndarray, " V"],
    name: str,
    stride: int | None = None,
    progress: Callable[[str, float], None] = lambda split, fraction: None,
) -> Float[np.ndarray, " T"]:
    """Return -log p of every token of a split but the first, in nats, in windows as `make_evaluator` says."""
    if isinstance(model, Mixture):
        return MixtureEvaluator(split, byte_lengths, stride).token_nats(model, name, progress)
    return ContextEvaluator.for_model(model, split, byte_lengths, stride).token_nats(model, name, progress)
