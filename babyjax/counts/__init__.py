"""Pair counts, exact fits on them and the decomposition of a loss; counted n-grams and their smoothing."""
