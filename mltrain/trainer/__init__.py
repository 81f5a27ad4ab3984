"""The training loop, and its evaluation, judging, saving and recovery."""
