"""The tracking server: a typed client, the names of all tags, and the registry."""
