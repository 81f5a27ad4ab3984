"""The training loop, and the objects that evaluate, judge, save and recover for it."""
