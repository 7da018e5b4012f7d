"""Losses of a model: exact from pair counts, or by sliding windows."""
