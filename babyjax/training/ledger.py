"""Where the loss of a BabyGPT v1 goes, in nats per token, every term exact."""

from typing import NamedTuple

from babyjax.models.babygpt import BabyGPT
from babyjax.training.counts import CountsProblem, Leg, legs_of
from babyjax.training.factors import factors_of
from babyjax.training.statistics import Nats, PairCounts

STARTS = 3
# Over a large vocabulary the search ends when a sweep brings less than this, in nats.
SWEEP_TOLERANCE = 2e-3


class Ledger(NamedTuple):
    """entropy + approximation + optimisation = training loss; + generalisation = validation loss.

    `best` says what is known of the best network of this width, between approximation and optimisation.
    """

    entropy: float
    approximation: float
    optimisation: float
    generalisation: float
    best: str


def draw_up_ledger(
    pairs: PairCounts, model: BabyGPT, losses: dict[str, Nats], interrupted: list[int] | None = None
) -> Ledger | None:
    """The ledger of `model`, whose exact losses on the splits of `pairs` are `losses`.

    The best network of its width is looked for from where `model` is and from other starts; it is never worse than
    `model`. None where `interrupted` has come to hold something before it was found.
    """
    entropy = pairs.entropy("train")
    train = max(losses["train"].per_token, entropy)  # which float32 may miss by a last digit
    width = model.token_embedding.embedding[...].shape[1]
    if width >= pairs.vocab_size - 1:
        best, known = entropy, f"any bigram has a rank below {pairs.vocab_size:,}"
    else:
        legs = [Leg("given", 0, 0.0, 0.0), *legs_of(STARTS, 0, 0.0, 0.0)]
        given = factors_of(model)
        problem = CountsProblem(pairs, width, legs, bias=given.bias is not None, given=given)
        if not problem.dense:
            problem.tolerance = SWEEP_TOLERANCE
        fit = problem.start()
        while not problem.done(fit):
            if interrupted:
                return None
            fit = problem.advance(fit)
        best, known = float(fit.best_score), problem.quality(fit)
    best = min(max(best, entropy), train)
    return Ledger(entropy, best - entropy, train - best, losses["val"].per_token - train, known)
