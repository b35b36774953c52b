"""The optimizers that torch does not have, or has without a step that can be dropped on the device. Chosen by `trainer.optim`."""
