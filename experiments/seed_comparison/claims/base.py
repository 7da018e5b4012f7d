"""A claim of the seed, the verdict on it, and the sections they stand in."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

Results = dict[str, Any]


class Verdict(StrEnum):
    HOLDS = "holds"
    LIMIT = "holds with a limit"
    FAILS = "does not hold"


HOLDS, LIMIT, FAILS = Verdict.HOLDS, Verdict.LIMIT, Verdict.FAILS


class Finding(NamedTuple):
    """The measured figure as text, the verdict that follows from it, and why."""

    figure: str
    verdict: Verdict
    because: str


def holds_if(condition: bool, figure: str, because: str, otherwise: str) -> Finding:
    """Return a finding that holds or fails, each with its reason."""
    return Finding(figure, HOLDS, because) if condition else Finding(figure, FAILS, otherwise)


Judge = Callable[[Results], Finding]


class Claim(NamedTuple):
    """A statement of the seed, how it is measured, and how results decide it."""

    says: str
    method: str
    judge: Judge

    @property
    def name(self) -> str:
        return self.judge.__name__


class Section:
    """A section of the seed. As a decorator it adds a claim, decided by the function below it."""

    def __init__(self, title: str):
        self.title, self.claims = title, list[Claim]()

    def __call__(self, says: str, method: str) -> Callable[[Judge], Judge]:
        def register(judge: Judge) -> Judge:
            self.claims.append(Claim(says, method, judge))
            return judge

        return register


SECTIONS = STRUCTURE, TRAINING, COST, IMPLEMENTATION, GENERATION, EQUIVALENCE, GPU, SUMMARY = (
    Section("Structure"),
    Section("Training"),
    Section("Complexity and memory access"),
    Section("Implementation"),
    Section("Generation"),
    Section("Equivalence"),
    Section("Fit for a GPU"),
    Section("Summary"),
)


def times(ratio: float) -> str:
    """Return a ratio as "43x" or "6.1x"."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


def digits(number: float) -> str:
    """Return a number as "1,005" or "1.17"."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def in_words(seconds: float) -> str:
    """Return seconds in a unit that suits them."""
    units = (("min", 60, 120), ("s", 1, 1), ("ms", 1e-3, 1e-3), ("µs", 1e-6, 0))  # name, size, used from
    unit, size = next((unit, size) for unit, size, least in units if seconds >= least)
    return f"{digits(seconds / size)} {unit}"


def curve(r: Results, name: str) -> dict[str, list[float]]:
    """Return the losses of one way of training on the way."""
    return r["training"]["curves"][name]
