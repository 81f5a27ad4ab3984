from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mltrain import Task
from projects.style_transfer import project
from projects.style_transfer.project import Config, build

CONFIG_FILE = Path(project.__file__).with_name("config.yaml")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the sample styles once, outside the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLTRAIN_CACHE", str(folder))
        yield folder


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """Two styles of a user's: five pictures of dots on red, and four of stripes on blue, of several sizes."""
    root = tmp_path / "styles"
    random = np.random.default_rng(0)
    for style, count in (("dots", 5), ("stripes", 4)):
        (root / style).mkdir(parents=True)
        for index in range(count):
            height, width = 40 + 3 * index, 56 - 2 * index
            pixels = np.zeros((height, width, 3), np.uint8)
            if style == "dots":
                pixels[..., 0] = 220
                pixels[random.random((height, width)) < 0.3] = 20
            else:
                pixels[..., 2] = 200
                pixels[:, index % 3 :: 4] = 250
            Image.fromarray(pixels).save(root / style / f"{style}{index}.png")
    return root


def quick(**overrides: Any) -> Config:
    """The preset for trying things out."""
    return Config.load([CONFIG_FILE], preset="quick", overrides={"device": "cpu", **overrides})


def built(config: Config) -> Task:
    torch.manual_seed(config.seed)
    task = build(config)
    task.step.prepare(torch.device("cpu"), config.amp)
    torch.manual_seed(config.seed)
    return task


def train(task: Task, epochs: int) -> list[dict[str, float]]:
    """Train, and return what every step says."""
    return [{name: float(x) for name, x in task.step(batch).items()} for _ in range(epochs) for batch in task.loader]
