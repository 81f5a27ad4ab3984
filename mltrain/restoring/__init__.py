"""Restores a training from a checkpoint, or undoes that."""
