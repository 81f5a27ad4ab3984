"""Restoring the parts of a training: weights, optimizers by the names of their parameters, and how to undo it."""
