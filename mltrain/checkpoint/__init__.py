"""Checkpoints: values, bytes, places, and the policies that decide which of them stay."""
