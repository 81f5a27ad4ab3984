"""Items that draw random numbers, and a loader of them."""

import random
from typing import Any

import numpy as np
import torch

from mltrain.data import ResumableLoader


class Noisy:
    """Items of their index and draws from all three generators."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        draws = [random.random(), float(np.random.randn()), float(torch.rand(()))]
        return index, torch.tensor(draws, dtype=torch.float64)


def loader(size: int = 10, batch_size: int = 3, **options: Any) -> ResumableLoader:
    return ResumableLoader(Noisy(size), batch_size, **{"seed": 5, **options})


def order(batches: list[Any]) -> list[int]:
    return [int(index) for batch in batches for index in batch[0]]
