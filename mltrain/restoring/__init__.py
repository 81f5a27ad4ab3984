"""Restores the parts of a training from a checkpoint, and undoes a restore that fails."""
