"""The evaluator that fits a model, and the referee of its losses."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from babyjax.counts.pairs import PairCounts
from babyjax.data.batches import Split, in_memory
from babyjax.evaluation.losses import ContextEvaluator, ExactEvaluator, Nats, commit_to_device
from babyjax.evaluation.mixing import MixtureEvaluator
from babyjax.evaluation.verify import HELD, Verification, verify
from babyjax.models.base import LanguageModel
from babyjax.processes import to_host
from babyjax.progress import Progress, silent

SAMPLED = 2048  # tokens, at most, that a finished run is verified on


@runtime_checkable
class Evaluator(Protocol):
    """Returns the loss of each split; calls `progress(split, fraction)` on the way."""

    def __call__(
        self, model: LanguageModel, splits: Sequence[str] = ..., progress: Progress = ...
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
    scores about that many of each split; a model that reads texts of any length is evaluated on every token. A mixture
    is judged on the validation split by weights that are cross-fitted there, not by its own.
    """
    if model.parts:
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
    progress: Progress = silent,
) -> Float[np.ndarray, " T"]:
    """Return -log p of every token of a split but the first, in nats, in windows as `make_evaluator` says.

    Those of a mixture on "val" are cross-fitted; `ContextEvaluator.for_model` has those by its own weights.
    """
    if model.parts:
        return MixtureEvaluator(split, byte_lengths, stride).token_nats(model, name, progress)
    return ContextEvaluator.for_model(model, split, byte_lengths, stride).token_nats(model, name, progress)


def verify_model(
    model: LanguageModel,
    split: Split,
    byte_lengths: Int[np.ndarray, " V"],
    size: int,
    nats: Float[np.ndarray, " T"],
    stride: int | None,
    progress: Callable[[float], None],
) -> Verification:
    """Verify a model and what `token_nats` returns for the validation split, which has `size` bytes.

    The losses of a mixture are cross-fitted, so they are those of no single model, and are not compared.
    """
    model = commit_to_device(model)
    windows = ContextEvaluator.for_model(model, split, byte_lengths, stride)
    verification = verify(
        lambda tokens: _predict(model, tokens),
        split.val,
        block_size=windows.block_size,
        stride=windows.stride,
        byte_lengths=byte_lengths,
        text=size,
        nats=None if model.parts else nats,
        progress=progress,
        **_options(model),
    )
    if not model.parts:
        return verification
    detail = "the mixture read here has weights fitted to this split; the losses above are cross-fitted"
    checks = (check._replace(detail=detail) if check.name == "losses" else check for check in verification.checks)
    return verification._replace(checks=tuple(checks))


def verify_sample(model: LanguageModel, split: Split, byte_lengths: Int[np.ndarray, " V"]) -> Verification:
    """Verify a model on the first windows of the validation split, shorter ones if its vocabulary is large.

    Everything is read in one shape, so that one program is compiled. Every process takes part.
    """
    model, vocab_size = commit_to_device(model), model.vocab_size
    longest = ContextEvaluator.for_model(model, split, byte_lengths).block_size
    block_size = min(longest, SAMPLED, max(1, HELD // (2 * vocab_size)), len(split.val) - 1)
    rows = max(1, min(SAMPLED, HELD // vocab_size) // block_size)
    tokens = in_memory(split.val[: rows * block_size + 1])
    return verify(
        lambda read: to_host(_predict(model, read)),
        tokens,
        block_size=block_size,
        byte_lengths=byte_lengths,
        nats=None
        if model.parts
        else ContextEvaluator(Split(tokens, tokens), byte_lengths, block_size).token_nats(model, "val"),
        one_shape=True,
        **_options(model),
    )


def _options(model: LanguageModel) -> dict[str, Any]:
    """Return arguments of `verify` for a model.

    The rounding of bfloat16 depends on the shape of a batch: differences of 0.1 nats were seen.
    """
    return {"logits": not model.normalized, "tolerance": 0.5 if model.low_precision else 1e-3}


@jax.jit
def _predict(model, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    with jax.default_matmul_precision("highest"):  # as when it is evaluated
        return model(tokens)
