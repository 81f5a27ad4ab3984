"""The example of a training with Ignite."""
