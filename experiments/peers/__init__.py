"""The same models in PyTorch, for parity and speed. Needs the `bench` extra."""
