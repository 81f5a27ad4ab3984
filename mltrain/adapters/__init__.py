"""Durable checkpoints for other trainers, one module per engine."""
