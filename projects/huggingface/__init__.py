"""The Trainer of transformers with durable checkpoints."""
