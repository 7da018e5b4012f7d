"""Training that is one step: counting a text, reading counted n-grams, mixing trained models."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer
from scipy.special import softmax

from babyjax.config import BigramConfig, MixtureConfig, NGramConfig, TrainConfig
from babyjax.counts.kneser_ney import choose_fitted, choose_order, estimate_ngram, fit_discounts
from babyjax.counts.pairs import count_windows
from babyjax.evaluation.losses import Nats
from babyjax.evaluation.mixing import MixtureEvaluator, cross_fitted, fit_gate
from babyjax.models.base import LanguageModel
from babyjax.models.bigram import Bigram, count_chunks, count_matrix
from babyjax.models.mixture import FEATURES, Mixture, features
from babyjax.text import duration
from babyjax.training.devices import require_memory
from babyjax.training.events import Event, State

# Tokens that are counted at once.
COUNTED = 1 << 26
NGRAM_BYTES = 40  # for each token whose n-grams are counted


class Made(NamedTuple):
    """A trained model, what was done, its losses if they are known already, and what else a person should know."""

    model: LanguageModel
    done: str
    losses: dict[str, Nats] | None = None
    more: tuple[str, ...] = ()


class OnceTrainer:
    """One step, `make`, to a trained model with the structure of `model`, of which only shapes are needed."""

    total_steps = 1

    def __init__(self, model: LanguageModel, make: Callable[[], Made]):
        self._model, self._make = model, make

    def init(self) -> State:
        """Return the shapes of the trained state: there is nothing to train from."""
        return State(np.int32(0), self._model, ())

    def run(self, state: State, pauses: tuple[int, ...] = ()) -> Iterator[Event]:
        """Take the step, unless `state` is trained already."""
        if state.step:
            return
        yield Event(0, state, np.empty(0), 0.0)
        start = time.perf_counter()
        made = self._make()
        jax.block_until_ready(made.model)
        seconds = time.perf_counter() - start
        yield Event(
            1,
            State(np.int32(1), made.model, ()),
            np.full(1, np.nan),
            seconds,
            last=True,
            note=made.done,
            milestone=True,
            summary=(*made.more, f"time      {duration(seconds)}, {made.done}"),
            losses=made.losses,
        )


def count_bigram(tokens: Integer[np.ndarray, " L"], vocab_size: int, config: BigramConfig, train: TrainConfig) -> Made:
    """Count every pair of `tokens`, or the pairs of the random windows of `train.steps` batches."""
    require_memory(2 * 4 * vocab_size**2, f"a table of {vocab_size:,} x {vocab_size:,} counts")
    if config.counting == "corpus":
        chunks = (tokens[start : start + COUNTED] for start in range(0, len(tokens), COUNTED))
        counts = count_matrix(tokens, vocab_size) if len(tokens) <= COUNTED else count_chunks(chunks, vocab_size)
    else:
        sizes = {"steps": train.steps, "batch_size": train.batch_size, "block_size": config.block_size}
        counts = count_windows(tokens, vocab_size, train.seed, **sizes)
    pairs = int(np.asarray(counts).sum(dtype=np.int64))
    return Made(Bigram(counts, config.smoothing), f"counted {pairs:,} pairs")


def count_ngram(tokens: Integer[np.ndarray, " L"], vocab_size: int, config: NGramConfig) -> Made:
    """Count the n-grams of `tokens` and smooth them. Raises: OutOfMemoryError if they are too many."""
    require_memory(NGRAM_BYTES * len(tokens), f"counting the n-grams of {len(tokens):,} tokens")
    fitted = config.discounts == "fitted"
    if config.order == "auto" and fitted:
        order, discounts = choose_fitted(tokens, vocab_size)
    else:
        order = choose_order(tokens, vocab_size) if config.order == "auto" else config.order
        discounts = fit_discounts(tokens, vocab_size, order)[0] if fitted else None
    model = estimate_ngram(tokens, vocab_size, order, discounts)
    return Made(model, f"counted {model.size:,} n-grams of up to {order} tokens")


def mix(
    parts: Sequence[LanguageModel], names: Sequence[str], config: MixtureConfig, evaluator: MixtureEvaluator
) -> Made:
    """Mix trained models, with the weights that are best for the validation split."""
    nats, knowledge = evaluator.part_nats(parts)
    size = FEATURES if config.weights == "context" and knowledge.any() else 1
    gate = fit_gate(nats, knowledge, size)
    model = Mixture(parts, jnp.asarray(gate, jnp.float32))
    losses = evaluator(model, ["train"]) | {"val": evaluator.of_tokens(cross_fitted(nats, knowledge, size), "val")}
    share = softmax(features(knowledge)[:, :size] @ gate, axis=1).mean(axis=0)
    return Made(
        model,
        f"mixed {len(parts)} models",
        losses,
        tuple(
            f"part      {name}: val {loss:.4f}, mean weight {weight:.3f}"
            for name, loss, weight in zip(names, nats.mean(axis=0), share, strict=True)
        ),
    )
