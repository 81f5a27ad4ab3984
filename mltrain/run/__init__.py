"""Runs that this process writes to: created, adopted, resumed, listed."""
