"""Objective, optimiser, step, exact statistics, checkpoints, the loop."""
