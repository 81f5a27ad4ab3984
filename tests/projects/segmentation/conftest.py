from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from projects.segmentation.folders import FolderPair, Sample, survey
from projects.segmentation.synthetic import Blobs


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sample data is made once for all tests, and not in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLTRAIN_CACHE", str(folder))
        yield folder


@pytest.fixture
def folders(tmp_path: Path) -> FolderPair:
    """Two empty folders."""
    pair = FolderPair(images=tmp_path / "images", masks=tmp_path / "masks")
    pair.images.mkdir()
    pair.masks.mkdir()
    return pair


@pytest.fixture
def blobs(tmp_path: Path) -> tuple[Sample, ...]:
    """Six drawn pictures of 40 by 56 pixels."""
    pair = FolderPair(images=tmp_path / "blobs" / "images", masks=tmp_path / "blobs" / "masks")
    Blobs(height=40, width=56).write(pair, 6, seed=3)
    return survey(pair).samples


@pytest.fixture
def draw() -> Callable[..., NDArray[np.uint8]]:
    """Random 8-bit pixels of a given shape."""
    random = np.random.default_rng(0)
    return lambda *shape: random.integers(0, 256, shape, dtype=np.uint8)


def save(pixels: NDArray[np.generic], file: Path) -> Path:
    Image.fromarray(pixels).save(file)
    return file
