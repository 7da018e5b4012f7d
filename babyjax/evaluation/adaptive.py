"""Adaptive evaluation: each token of the validation split is predicted, then counted.

It is another protocol than static evaluation, closer to what a compressor does, and its losses are not to be compared
with static ones.
"""

import numpy as np
from jaxtyping import Float, Int, Integer

from babyjax.config import BigramConfig, Config, NGramConfig
from babyjax.counts.kneser_ney import evidence_of, fit_discounts, knowledge_at, nats_at
from babyjax.counts.ngrams import sum_before
from babyjax.data.batches import Split
from babyjax.errors import ConfigError
from babyjax.evaluation.mixing import MixtureEvaluator, cross_fitted
from babyjax.models.base import LanguageModel
from babyjax.models.mixture import most_known
from babyjax.progress import Progress, silent
from babyjax.trees import named_arrays

TokenNats = Float[np.ndarray, " T"]
Knowledge = Float[np.ndarray, "T 3"]


def counts_text(config: Config) -> bool:
    """Return whether the model of a run was counted on its training split, and can count on."""
    return isinstance(config.model, BigramConfig) or (isinstance(config.model, NGramConfig) and not config.model.arpa)


def require_counting(config: Config, parts: tuple[Config, ...]) -> None:
    """Raises: ConfigError if neither the model of a run nor any of its parts was counted."""
    if not any(map(counts_text, (config, *parts))):
        raise ConfigError(
            f"adaptive=true is for models that count (bigram, ngram) and mixtures with one, not for "
            f"model={config.choices.model}" + (" from an ARPA file" if isinstance(config.model, NGramConfig) else "")
        )


def adaptive_nats(
    config: Config,
    model: LanguageModel,
    parts: tuple[Config, ...],
    split: Split,
    byte_lengths: Int[np.ndarray, " V"],
    stride: int | None = None,
    progress: Progress = silent,
) -> TokenNats:
    """Return -log p of every validation token but the first, each counted once it is predicted, in nats.

    `config` is that of the run of `model`, and `parts` are those of the parts of a mixture. Its counted parts go on
    counting. The others read windows that are `stride` apart, half a block by default. The weights are cross-fitted on
    these losses.

    Raises: ConfigError if neither the model nor any part was counted.
    """
    require_counting(config, parts)
    if model.parts:
        static = MixtureEvaluator(split, byte_lengths, stride)

        def of_part(config: Config, part: LanguageModel) -> tuple[TokenNats, Knowledge]:
            if counts_text(config):
                return _counting_nats(config, part, split)
            windows = static.windows(part)
            return windows.token_nats(part, "val", progress), windows.token_knowledge(part, "val")

        nats, knowledge = zip(*map(of_part, parts, model.parts), strict=True)
        return cross_fitted(np.stack(nats, axis=1), most_known(knowledge), model.gate_size)
    return _counting_nats(config, model, split)[0]


def _counting_nats(config: Config, model: LanguageModel, split: Split) -> tuple[TokenNats, Knowledge]:
    """Return the losses and the knowledge before each token."""
    if isinstance(config.model, BigramConfig):
        nats = bigram_nats(np.asarray(named_arrays(model)["counts"]), config.model.smoothing, split.val)
        return nats, np.zeros((len(nats), 3))
    assert isinstance(config.model, NGramConfig)
    fitted, order = config.model.discounts == "fitted", model.context_length + 1
    discounts = fit_discounts(split.train, model.vocab_size, order, adaptive=True)[0] if fitted else None
    evidence = evidence_of(split.train, split.val, model.vocab_size, order, adaptive=True, discounts=discounts)
    return nats_at(evidence, model.vocab_size), knowledge_at(evidence)


def bigram_nats(counts: Int[np.ndarray, "V V"], smoothing: float, text: Integer[np.ndarray, " L"]) -> TokenNats:
    """Return the losses of the count bigram on every token but the first, each counted once it is predicted."""
    vocab_size = len(counts)
    current, following = text[:-1].astype(np.int64), text[1:].astype(np.int64)
    one = np.ones(len(current), np.int64)
    count = counts[current, following] + sum_before(current * vocab_size + following, one) + smoothing
    total = counts.sum(axis=1)[current] + sum_before(current, one) + smoothing * vocab_size
    return -np.log(np.where(total > 0, count / np.where(total > 0, total, 1), 1 / vocab_size))
