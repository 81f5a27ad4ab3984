"""Assembles a configuration from files, text and the environment."""
