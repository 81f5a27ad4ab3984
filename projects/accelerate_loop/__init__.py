"""A loop on accelerate with durable checkpoints."""
