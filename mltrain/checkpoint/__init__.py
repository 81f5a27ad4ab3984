"""Checkpoints: values, files, folders, and retention policies."""
