"""Records the code, data and written files of a training."""
