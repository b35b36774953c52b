"""Checkpoints that belong to the model, not to the strategy that wrote them."""
