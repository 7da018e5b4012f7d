"""The seed's claims. A verdict is a function of the results alone: change a figure there and the verdict follows."""

from experiments.seed_comparison.claims import cost, models
from experiments.seed_comparison.claims.base import FAILS, HOLDS, LIMIT, SECTIONS, Claim, Results, Verdict, in_words

CLAIMS: list[Claim] = [claim for section in SECTIONS for claim in section.claims]

__all__ = ["CLAIMS", "FAILS", "HOLDS", "LIMIT", "SECTIONS", "Claim", "Results", "Verdict", "cost", "in_words", "models"]
