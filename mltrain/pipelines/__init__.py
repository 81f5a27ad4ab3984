"""Pipelines: several stages, each a resumable run under one parent."""
