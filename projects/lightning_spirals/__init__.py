"""The example of a training with Lightning."""
