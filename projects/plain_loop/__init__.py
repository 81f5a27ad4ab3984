"""A hand-written training loop with durable checkpoints: what one adds to a loop that one has."""
