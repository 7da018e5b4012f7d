"""Trainers as generators of events, and the training step."""
