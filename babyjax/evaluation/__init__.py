"""Losses of a model (exact, by sliding windows, adaptive), their verification, and comparisons of models."""
