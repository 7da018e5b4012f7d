"""Where the loss of a BabyGPT v1 comes from, in nats per token."""

from collections.abc import Callable
from typing import NamedTuple

from babyjax.counts.factors import factors_of
from babyjax.counts.fit import CountsProblem, Restart, plan_restarts
from babyjax.counts.pairs import PairCounts
from babyjax.evaluation.losses import Nats
from babyjax.models.base import LanguageModel

RESTARTS = 3


class Decomposition(NamedTuple):
    """entropy + approximation + optimization = training loss; + generalization = validation loss, nats per token.

    `best` describes the best network of this width, whose loss is entropy + approximation.
    """

    entropy: float
    approximation: float
    optimization: float
    generalization: float
    best: str


def decompose(
    pairs: PairCounts, model: LanguageModel, losses: dict[str, Nats], stopping: Callable[[], bool] = lambda: False
) -> Decomposition | None:
    """Decompose the exact `losses` of v1 on the splits of `pairs`. Returns None if `stopping()` before the end.

    The search for the best network of this width starts from `model` and elsewhere, so the best is never worse.

    Raises: ConfigError if the model is not v1.
    """
    entropy = pairs.entropy("train")
    train = max(losses["train"].per_token, entropy)  # in float32 it may miss the entropy by a last digit
    given = factors_of(model)
    width = given.embedding.shape[1]
    best, known = entropy, f"any bigram has a rank below {pairs.vocab_size:,}"
    if width < pairs.vocab_size - 1:
        restarts = [Restart("given", 0, 0.0, 0.0), *plan_restarts(RESTARTS, 0, 0.0, 0.0)]
        problem = CountsProblem(pairs, width, restarts, bias=given.bias is not None, given=given)
        position = problem.start()
        for step in problem.run(position):
            if stopping():
                return None
            position = step.position
        best, known = float(position.best_score), problem.quality(position)
    best = min(max(best, entropy), train)
    return Decomposition(entropy, best - entropy, train - best, losses["val"].per_token - train, known)
