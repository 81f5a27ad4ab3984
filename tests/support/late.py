"""A small network with parameters large enough for late copies."""

from torch import nn

WIDE = 160
"""A weight of so many times 128 floats is copied late."""


def net(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, WIDE), nn.Linear(WIDE, outputs)
    )
