"""Interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, section 4.1), static and adaptive.

The probability of a token after a context is

    (count - discount + (N1 D1 + N2 D2 + N3 D3) * probability after the context without its first token) / total,

where `count` is that of the n-gram, `total` the sum of the counts after its context, N1, N2 and N3 how many tokens were
counted once, twice and more often there, and D1, D2 and D3 what is taken from such counts. The longest n-grams have the
counts of the text; a shorter one counts in how many different contexts it was seen. Below the 1-grams is the uniform
distribution. After a context that was never seen the probability is that after the shorter one.

Adaptive means that each token of a text is predicted and then counted. All that a prediction needs is a sum over the
places before it, so no place waits for another: sorted by n-gram or context, a cumulative sum has them all.
"""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int, Integer

from babyjax.counts.ngrams import Level, count_ngrams, sum_before
from babyjax.data.batches import TRAIN_FRACTION
from babyjax.errors import ConfigError
from babyjax.models.base import NOTHING_KNOWN
from babyjax.models.ngram import MAX_ORDER, NGram

# lmplz of KenLM has these where the formula has no value.
FALLBACK = (0.5, 1.0, 1.5)
MAX_DISCOUNTS = np.array([1.0, 2.0, 3.0])  # a discount cannot exceed the count that it is taken from

MIN_GAIN = 1e-3  # nats per token that one more token of context must bring

Discounts = Float[np.ndarray, "n 3"]


class Evidence(NamedTuple):
    """What the counts say of n-grams of one length: one for each, or one for each place of a text."""

    counts: Int[np.ndarray, " T"]
    total: Int[np.ndarray, " T"]
    kinds: Int[np.ndarray, "T 3"]  # N1, N2, N3
    discounts: Float[np.ndarray, "*T 3"]

    def taken(self) -> Float[np.ndarray, " T"]:
        """Return the discount of each n-gram."""
        padded = np.insert(self.discounts, 0, 0.0, axis=-1)
        kind = np.minimum(self.counts, 3)
        return padded[kind] if padded.ndim == 1 else np.take_along_axis(padded, kind[:, None], axis=1)[:, 0]

    def interpolate(self, lower: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Return the probability of each n-gram's last token, given that after the shorter context."""
        mixed = self.counts - self.taken() + (self.kinds * self.discounts).sum(axis=-1) * lower
        return np.where(self.total > 0, mixed / np.maximum(self.total, 1), lower)


def discounts_of(counts_of_counts: Int[np.ndarray, "*T 4"]) -> Float[np.ndarray, "*T 3"]:
    """Return D1, D2 and D3 from the numbers of n-grams with a count of 1, 2, 3 and 4.

    They are those of the paper, unless one has no value or is not in (0, 1], (0, 2] or (0, 3]: then `FALLBACK`.
    """
    one, two, three, four = np.moveaxis(counts_of_counts.astype(float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = one / (one + 2 * two)
        estimates = np.stack([1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three], axis=-1)
    valid = ((estimates > 0) & (estimates <= MAX_DISCOUNTS)).all(axis=-1, keepdims=True)
    return np.where(valid, estimates, FALLBACK)


def _counts(levels: list[Level], length: int, highest: bool) -> Int[np.ndarray, " N"]:
    """Return how often each n-gram occurs or, unless its length is the highest, in how many contexts."""
    level = levels[length - 1]
    if highest:
        return level.counts
    longer = levels[length]
    return np.bincount(longer.suffix[longer.counts > 0], minlength=len(level.last))


def _by_context(levels: list[Level], length: int, counts: Int[np.ndarray, " N"]) -> Evidence:
    """Return what the counts of the n-grams of a length say of each context; the counts there are 0."""
    level, contexts = levels[length - 1], len(levels[length - 2].last) if length > 1 else 1
    total = np.bincount(level.prefix, counts, contexts).astype(np.int64)
    bins = (counts == 1, counts == 2, counts >= 3)
    kinds = np.stack([np.bincount(level.prefix[kind], minlength=contexts) for kind in bins], axis=-1)
    discounts = discounts_of(np.array([np.count_nonzero(counts == times) for times in (1, 2, 3, 4)]))
    return Evidence(np.zeros(contexts, np.int64), total, kinds, discounts)


def estimate_ngram(
    tokens: Integer[np.ndarray, " L"], vocab_size: int, order: int, discounts: Discounts | None = None
) -> NGram:
    """Count `tokens` and return the n-gram model, with the paper's discounts or those given for each length.

    Raises: TokenError if an id is out of range, ConfigError if the order is.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ConfigError(f"order={order} must lie in [1, {MAX_ORDER}]")
    levels = count_ngrams(tokens, vocab_size, order)
    probability, probabilities, backoff = np.full(1, 1 / vocab_size), [], []
    for length, level in enumerate(levels, 1):
        counts = _counts(levels, length, length == order)
        contexts = _by_context(levels, length, counts)
        if discounts is not None:
            contexts = contexts._replace(discounts=discounts[length - 1])
        if length > 1:
            backoff.append(contexts.interpolate(np.ones(len(contexts.counts))))
        total, kinds = contexts.total[level.prefix], contexts.kinds[level.prefix]
        probability = Evidence(counts, total, kinds, contexts.discounts).interpolate(probability[level.suffix])
        probabilities.append(probability)
    return NGram.from_levels(
        vocab_size,
        [level.last for level in levels],
        [level.prefix for level in levels],
        [np.log(each) for each in probabilities],
        [np.log(each) for each in backoff],
    )


def evidence_at(levels: list[Level], length: int, highest: bool, adaptive: bool) -> Evidence:
    """Return what is known at each place of the second text from the `length`-th on, when it is predicted."""
    level = levels[length - 1]
    gram = level.after[: max(len(level.after) - length + 1, 0)]  # that ends at the place
    context = level.prefix[gram]
    counts = _counts(levels, length, highest)
    contexts = _by_context(levels, length, counts)
    count, total, kinds = counts[gram], contexts.total[context], contexts.kinds[context]
    if not adaptive:
        return Evidence(count, total, kinds, contexts.discounts)
    if highest:
        counted = np.ones(len(gram), bool)
    else:
        longer = levels[length]
        extended = longer.after[: max(len(gram) - 1, 0)]
        is_new = (longer.counts[extended] == 0) & (sum_before(extended, np.ones(len(extended), int)) == 0)
        counted = np.append(False, is_new)[: len(gram)]  # the first has no token before it
    count = count + sum_before(gram, counted.astype(int))
    more = _change_of_kinds(count, counted)
    in_all = np.array([np.count_nonzero(counts == times) for times in (1, 2, 3, 4)])
    changes = np.cumsum(more[:, :4], axis=0) - more[:, :4]
    by_context = np.stack([more[:, 0], more[:, 1], more[:, 2:].sum(axis=1)], axis=-1)
    return Evidence(
        count,
        total + sum_before(context, counted.astype(int)),
        kinds + sum_before(context, by_context),
        discounts_of(in_all + changes),
    )


def _change_of_kinds(count: Int[np.ndarray, " T"], counted: Bool[np.ndarray, " T"]) -> Int[np.ndarray, "T 5"]:
    """Return what one more changes in the number of n-grams with a count of 1, 2, 3, 4 and 5 or more."""
    times = np.arange(1, 5)
    before = np.column_stack([count[:, None] == times, count > 4])
    after = np.column_stack([count[:, None] + 1 == times, count > 3])
    return (after.astype(int) - before) * counted[:, None]


def nats_at(evidence: list[Evidence], vocab_size: int) -> Float[np.ndarray, " T"]:
    """Return -log p of every token of a text but the first, from the evidence for n-grams of 1, 2, ... tokens."""
    probability = np.full(len(evidence[0].counts), 1 / vocab_size)
    for shorter, each in enumerate(evidence):
        probability[shorter:] = each.interpolate(probability[shorter:])
    return -np.log(probability[1:])


def knowledge_at(evidence: list[Evidence]) -> Float[np.ndarray, "T 3"]:
    """Return the `knowledge` before every token of a text but the first.

    It is that of the model, except for a context whose follower was seen only at the very start of the training text:
    that n-gram has no count here, but is in the trie.
    """
    found = np.tile(NOTHING_KNOWN, (len(evidence[0].counts), 1))
    for length, each in enumerate(evidence[1:], 1):
        seen = each.total > 0
        kinds, total = each.kinds[seen], each.total[seen]
        discounts = np.broadcast_to(each.discounts, each.kinds.shape)[seen]
        left, followers = (kinds * discounts).sum(axis=-1) / total, kinds.sum(axis=-1)
        found[length:][seen] = np.column_stack([left, np.log(followers), np.full(len(total), length)])
    return found[1:]


def evidence_of(
    tokens: Integer[np.ndarray, " L"],
    text: Integer[np.ndarray, " M"],
    vocab_size: int,
    order: int,
    *,
    adaptive: bool = False,
    discounts: Discounts | None = None,
) -> list[Evidence]:
    """Return the evidence from `tokens` for `text`, for n-grams of 1 to `order` tokens.

    `adaptive`: each token of `text` is counted once it is predicted, and the paper's discounts follow.
    """
    levels = count_ngrams(tokens, vocab_size, order, text)
    evidence = [evidence_at(levels, length, length == order, adaptive) for length in range(1, order + 1)]
    if discounts is None:
        return evidence
    return [each._replace(discounts=row) for each, row in zip(evidence, discounts, strict=True)]


def held_out(tokens: Integer[np.ndarray, " L"]) -> tuple[Integer[np.ndarray, " K"], Integer[np.ndarray, " H"]]:
    """Split a training text into what is counted and what is held out to choose by: the last tenth."""
    boundary = int(TRAIN_FRACTION * len(tokens))
    return tokens[:boundary], tokens[boundary:]


def losses_by_order(
    tokens: Integer[np.ndarray, " L"], text: Integer[np.ndarray, " M"], vocab_size: int
) -> Float[np.ndarray, " 10"]:
    """Return the loss on `text`, in nats per token, of the models of `tokens` of order 1 to MAX_ORDER."""
    levels = count_ngrams(tokens, vocab_size, MAX_ORDER, text)
    shared, losses = [], []
    for length in range(1, MAX_ORDER + 1):
        losses.append(nats_at([*shared, evidence_at(levels, length, True, adaptive=False)], vocab_size).mean())
        if length < MAX_ORDER:
            shared.append(evidence_at(levels, length, False, adaptive=False))
    return np.array(losses)


def choose_order(tokens: Integer[np.ndarray, " L"], vocab_size: int) -> int:
    """Return the order of the lowest loss on the last tenth of `tokens`, counted on the rest; 2 for a tiny text."""
    counted, text = held_out(tokens)
    return 2 if len(text) < 2 else 1 + int(losses_by_order(counted, text, vocab_size).argmin())


def choose_fitted(tokens: Integer[np.ndarray, " L"], vocab_size: int) -> tuple[int, Discounts]:
    """Return an order and its fitted discounts: with these more tokens than `choose_order` says may pay.

    The order grows until one more brings less than `MIN_GAIN` on the last tenth of `tokens`.
    """
    order = choose_order(tokens, vocab_size)
    discounts, loss = fit_discounts(tokens, vocab_size, order)
    while order < MAX_ORDER:
        longer, lower = fit_discounts(tokens, vocab_size, order + 1)
        if loss - lower < MIN_GAIN:
            break
        order, discounts, loss = order + 1, longer, lower
    return order, discounts


def fit_discounts(
    tokens: Integer[np.ndarray, " L"], vocab_size: int, order: int, *, adaptive: bool = False
) -> tuple[Discounts, float]:
    """Return the discounts of each length with the lowest loss on the last tenth of `tokens`, counted on the rest, and
    that loss in nats per token.

    Their logits, as shares of the largest possible, have a standard normal prior around the paper's, so that a short
    text does not move them far.
    """
    counted, text = held_out(tokens)
    if len(text) < 2:
        counted = text = tokens
    evidence = evidence_of(counted, text, vocab_size, order, adaptive=adaptive)
    # Those before the first token. A text shorter than the n-grams has no evidence for them.
    published = np.stack([next(iter(each.discounts.reshape(-1, 3)), FALLBACK) for each in evidence])
    share = np.clip(published / MAX_DISCOUNTS, 0.01, 0.99)
    prior = np.log(share / (1 - share))

    def objective(flat):
        logits = flat.reshape(order, 3)
        share = 1 / (1 + np.exp(-logits))
        loss, gradient = _loss_and_gradient(evidence, share * MAX_DISCOUNTS, vocab_size)
        away = (logits - prior) / len(text)
        slope = gradient * MAX_DISCOUNTS * share * (1 - share) + away
        return loss + ((logits - prior) * away).sum() / 2, slope.ravel()

    found = scipy.optimize.minimize(objective, prior.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    discounts = MAX_DISCOUNTS / (1 + np.exp(-found.x.reshape(order, 3)))
    return discounts, _loss_and_gradient(evidence, discounts, vocab_size)[0]


def _loss_and_gradient(evidence: list[Evidence], discounts: Discounts, vocab_size: int) -> tuple[float, Discounts]:
    """Return the loss in nats per token and its gradient with respect to the discounts."""
    probability, lowers = np.full(len(evidence[0].counts), 1 / vocab_size), []
    evidence = [each._replace(discounts=row) for each, row in zip(evidence, discounts, strict=True)]
    for shorter, each in enumerate(evidence):
        lowers.append(probability[shorter:].copy())
        probability[shorter:] = each.interpolate(lowers[-1])
    tokens = len(probability) - 1
    slope = np.append(0.0, -1 / (tokens * probability[1:]))  # of the loss with respect to the probability
    gradient = np.zeros_like(discounts)
    for shorter in reversed(range(len(evidence))):
        each, lower, above = evidence[shorter], lowers[shorter], slope[shorter:]
        part = np.where(each.total > 0, above / np.maximum(each.total, 1), 0.0)
        taken = np.bincount(np.minimum(each.counts, 3), part, 4)[1:]
        gradient[shorter] = (part * lower) @ each.kinds - taken
        slope[shorter:] = np.where(each.total > 0, part * (each.kinds @ discounts[shorter]), above)
    return float(-np.log(probability[1:]).sum() / tokens), gradient
