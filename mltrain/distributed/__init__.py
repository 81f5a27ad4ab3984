"""Training on several processes with torch.distributed; the only package that imports it."""
