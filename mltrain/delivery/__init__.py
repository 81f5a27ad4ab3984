"""Delivers a run's records: journal, sender, sync."""
