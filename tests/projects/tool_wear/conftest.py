from pathlib import Path

import numpy as np
import pytest
import torch

from projects.tool_wear import ToolWearClassifier, synthetic
from projects.tool_wear.windows import Windowing, Windows
from tests.projects.tool_wear.waves import TRAIN, VAL, small_classifier


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> Windows:
    """Four tools of thirty cuts with two windows each. A window has 32 samples."""
    return synthetic.generate(Windowing(steps=32), seed=3, cuts=30)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToolWearClassifier, Path]:
    """A classifier that nothing happened to, and its checkpoint."""
    torch.set_num_threads(1)
    file = tmp_path_factory.mktemp("trained") / "wear.ckpt"
    classifier = small_classifier()
    classifier.train(TRAIN, VAL, checkpoint_path=file)
    return classifier, file
