"""Is one of two models better, or one of two recipes? Intervals over the text and over seeds, and the verdict in words.

A loss varies for two reasons: another text would have given another loss, and so would another seed. The first is
estimated from contiguous segments of the text, paired, because both models read the same segments. The second is
estimated from runs that differ only in their seed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from babyjax.data.batches import segments_of
from babyjax.evaluation.losses import Nats

# The most seeds that are worth asking for.
MOST_SEEDS = 1000


def t_quantile(degrees: float | int, level: float = 0.95) -> float:
    """Return how many standard errors a two-sided interval extends to each side, by Student's t."""
    return float(stdtrit(degrees, (1 + level) / 2))


class Interval(NamedTuple):
    """The mean of some values and half the width of its confidence interval, None for one value."""

    mean: float
    deviation: float | None  # standard deviation of the values
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval at 95 % by Student's t, for values that are independent and about normal."""
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean, None, None)
        deviation = float(np.std(values, ddof=1))
        return cls(mean, deviation, t_quantile(count - 1) * deviation / math.sqrt(count))


class Scored(NamedTuple):
    """The losses of one run on consecutive tokens of a text, which ends with the last of them."""

    nats: Float[np.ndarray, " T"]
    ends: Int[np.ndarray, " T"]  # where each token ends, in bytes of the text
    start: int  # where the first token starts

    def segments(self, edges: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K-1"]:
        """Return the nats between edges in bytes; a token across an edge is divided in proportion.

        All are infinite if the loss of a token is.
        """
        if not np.isfinite(self.nats).all():
            return np.full(len(edges) - 1, np.inf)
        ends = np.concatenate([[self.start], self.ends])
        return np.diff(np.interp(edges, ends, np.concatenate([[0.0], np.cumsum(self.nats)])))


def common_edges(scored: Sequence[Scored]) -> Int[np.ndarray, " K"]:
    """Return the edges, in bytes, of the segments of the text that every run has scored.

    They are ends of tokens of the first run. Segments have about equal numbers of its tokens, at least 5,000 if it has
    as many.
    """
    start = max(run.start for run in scored)
    ends = np.unique(scored[0].ends[scored[0].ends > start])
    ends = np.concatenate([[start], ends])
    return ends[np.linspace(0, len(ends) - 1, segments_of(len(ends) - 1) + 1).round().astype(np.int64)]


class Side(NamedTuple):
    """One of the compared: its runs, which differ only in their seed, on the same segments of a text."""

    nats: Float[np.ndarray, "S K"]
    seeds: tuple[int, ...]
    seeded: bool = True  # whether another seed would give another model


class Difference(NamedTuple):
    """The loss of B minus that of A in nats per unit, the unit being a token or a byte, and how it varies.

    Standard errors are None if nothing is known about them: of the text if it is too short, of the seeds if a side has
    one seed. If a loss is infinite or NaN, so are `mean` and the standard error of several seeds.
    """

    mean: float
    of_text: float | None
    of_seeds: float | None
    text_degrees: int
    seed_degrees: float
    spread: float  # the standard error of the seeds if there were one per side
    groups: int  # of seeds that vary independently: 1 if they are paired, or if one side has none
    paired: bool

    @classmethod
    def between(cls, a: Side, b: Side, units: Int[np.ndarray, " K"]) -> "Difference":
        """Compare two sides on segments of `units` tokens or bytes. Equal seeds are paired, others are not (Welch)."""
        if not (np.isfinite(a.nats).all() and np.isfinite(b.nats).all()):
            ours, theirs = (not np.isfinite(side.nats).all() for side in (a, b))
            mean = math.nan if ours and theirs else -math.inf if ours else math.inf
            of_seeds = None if any(side.seeded and len(side.seeds) == 1 for side in (a, b)) else math.inf
            return cls(mean, None, of_seeds, len(units) - 1, 0.0, math.nan, 0, False)
        segments = b.nats.mean(axis=0) - a.nats.mean(axis=0)
        whole = Nats.of_segments(segments, units, 1)
        losses = [side.nats.sum(axis=1) / units.sum() for side in (a, b)]
        paired = a.seeded and b.seeded and a.seeds == b.seeds and len(a.seeds) > 1
        if paired:
            variances, counts = [float(np.var(losses[1] - losses[0], ddof=1))], [len(a.seeds)]
        else:
            random = [loss for loss, side in zip(losses, (a, b), strict=True) if side.seeded]
            counts = [len(loss) for loss in random]
            variances = [float(np.var(loss, ddof=1)) if len(loss) > 1 else math.nan for loss in random]
        errors = [math.sqrt(variance / count) for variance, count in zip(variances, counts, strict=True)]
        known = not any(map(math.isnan, errors))
        seed_error, seed_degrees = _add(errors, [count - 1 for count in counts]) if known else (None, 0.0)
        return cls(
            whole.per_token,
            whole.standard_error,
            seed_error,
            len(units) - 1,
            seed_degrees,
            math.sqrt(sum(variances)) if known else math.nan,
            len(counts),
            paired,
        )

    def half_width(self, level: float = 0.95) -> float | None:
        """Return half of the confidence interval: of text and seeds together if both are known, else of the text.

        None if the text is too short to tell. The degrees of freedom are Welch's and Satterthwaite's.
        """
        if self.of_text is None:
            return None
        error, degrees = _add([self.of_text, self.of_seeds or 0.0], [self.text_degrees, self.seed_degrees])
        return t_quantile(degrees, level) * error if error else 0.0

    def seeds_for(self, resolution: float, level: float = 0.95) -> int | None:
        """Return how many seeds per side would make `half_width` at most `resolution`, None if no number would."""
        if self.of_text is None or math.isnan(self.spread):
            return None
        for seeds in range(2, MOST_SEEDS + 1):
            errors = [self.of_text, self.spread / math.sqrt(seeds)]
            error, degrees = _add(errors, [self.text_degrees, self.groups * (seeds - 1)])
            if t_quantile(degrees, level) * error <= resolution:
                return seeds
        return None


def _add(errors: Sequence[float], degrees: Sequence[float | int]) -> tuple[float, float]:
    """Return the standard error of a sum of independent terms and its degrees of freedom (Satterthwaite 1946)."""
    squares = [error**2 for error in errors]
    total = sum(squares)
    parts = sum(square**2 / freedom for square, freedom in zip(squares, degrees, strict=True) if square)
    return math.sqrt(total), total**2 / parts if parts else math.inf


class Verdict(NamedTuple):
    """What may be said of A and B: `better` is "A", "B" or None if they are not distinguishable."""

    better: str | None
    words: str


def judge(
    difference: Difference,
    unit: str,
    *,
    names: tuple[str, str] = ("A", "B"),
    same_recipe: bool = False,
    seeds: int = 1,
    resolution: float = 0.005,
    level: float = 0.95,
    remedy: str = "use train.seeds=4",
) -> Verdict:
    """Say which side is better, if either is.

    `seeds` is the smaller number of seeds of a side, and `remedy` says how to get more than one.

    Without several seeds the verdict is about the trained models, and says so. Runs of the same recipe, which differ
    only in their seed, are not distinguishable as recipes, whatever the difference between their models.
    """
    mean, half = difference.mean, difference.half_width(level)
    one_seed = f"; one seed says little about the recipe: {remedy}"
    if math.isnan(mean):
        return Verdict(None, "not distinguishable: both losses are infinite or NaN")
    if math.isinf(mean):
        better, worse = names if mean > 0 else names[::-1]
        reason = f"the loss of {worse} is infinite or NaN"
        if same_recipe:
            return Verdict(None, f"not distinguishable: they differ only in their seed ({reason})")
        if difference.of_seeds is None:
            return Verdict(better, f"this model of {better} is better: {reason}{one_seed}")
        return Verdict(better, f"{better} is better: {reason}")
    if half is None:
        return Verdict(None, f"not distinguishable: the text is too short to tell (difference {mean:+.4f} {unit})")
    amount = f"{abs(mean):.4f} +- {half:.4f} {unit} ({100 * level:.3g} %)"
    if same_recipe:
        said = f"not distinguishable: they differ only in their seed (a difference of {amount} between these models)"
        return Verdict(None, said)
    better = None if abs(mean) <= half else names[mean < 0]
    if difference.of_seeds is None:
        if better is None:
            return Verdict(None, f"not distinguishable: {amount}")
        return Verdict(better, f"this model of {better} is better by {amount}{one_seed}")
    if better is not None:
        return Verdict(better, f"{better} is better by {amount}")
    return Verdict(None, f"not distinguishable: {amount}{_remedy(difference, half, unit, seeds, resolution, level)}")


def _remedy(difference: Difference, half: float, unit: str, seeds: int, resolution: float, level: float) -> str:
    """Say what would resolve a difference of `resolution`, if this comparison does not."""
    if half <= resolution:
        return ""
    needed = difference.seeds_for(resolution, level)
    if needed is None:
        return f"; only a longer text would resolve {resolution:g} {unit}"
    more = max(needed - seeds, 1)
    return f"; about {more} more seed{'s' * (more > 1)} would resolve {resolution:g}"
