"""The ways to train, as the `train` door runs them."""
