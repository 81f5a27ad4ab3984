from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import mltrain
from projects.segmentation import project
from projects.segmentation.folders import FolderPair, Sample, Survey, survey_all
from projects.segmentation.labels import Declaration
from projects.segmentation.pixels import read_classes, read_values
from projects.segmentation.project import Config, build
from projects.segmentation.synthetic import Blobs

CONFIG_FILE = Path(project.__file__).with_name("config.yaml")


def read_mask(file: Path) -> NDArray[np.bool_]:
    """Read a mask (H, W) of two values; it is true in the foreground."""
    labels = Declaration().labels([read_values(file).content(file.name)])
    return np.asarray(read_classes(file, labels) > 0)


def survey(folders: FolderPair, **options: Any) -> Survey:
    """Survey one pair of folders."""
    (found,) = survey_all([folders], **options)
    return found


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the sample data once, outside the user's cache."""
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


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Twelve pictures of a user's."""
    folders = FolderPair(images=tmp_path / "images", masks=tmp_path / "masks")
    Blobs(height=40, width=60).write(folders, 12, seed=0)
    return {"image_path": str(folders.images), "gt_path": str(folders.masks)}


def save(pixels: NDArray[np.generic], file: Path) -> Path:
    Image.fromarray(pixels).save(file)
    return file


def made(**overrides: Any) -> Config:
    return Config.load(overrides=overrides)


def built(config: Config) -> mltrain.Task:
    torch.manual_seed(config.seed)
    return build(config)


def train(task: mltrain.Task, epochs: int) -> list[float]:
    """Train, and return the loss of every step."""
    return [float(task.step(batch)["loss"]) for _ in range(epochs) for batch in task.loader]
