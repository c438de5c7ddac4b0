"""Training: the loss, the optimizer with its schedule, and the training loop."""
