"""What the command line calls: train, evaluate, compare, prune, import, doctor."""
