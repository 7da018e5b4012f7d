"""Texts larger than memory: what preparing, counting, reading and training on them costs, and who does it faster."""
