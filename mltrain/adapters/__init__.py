"""Durable checkpoints for the trainers of others: one module an engine, imported only by its users."""
