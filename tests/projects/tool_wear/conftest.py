import numpy as np
import pytest
import torch

from projects.tool_wear import synthetic
from projects.tool_wear.windows import Windowing, Windows


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> Windows:
    """Four tools of thirty cuts, two windows of 32 samples each."""
    return synthetic.generate(Windowing(steps=32), seed=3, cuts=30)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)
