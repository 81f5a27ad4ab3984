"""Doing what a pipeline declares: outputs that are handed on, runs of stages, the run of a pipeline."""
