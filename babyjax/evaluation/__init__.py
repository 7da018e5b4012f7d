"""Losses of a model, exact, by sliding windows or adaptive; whether they can be trusted, and which of two is better."""
