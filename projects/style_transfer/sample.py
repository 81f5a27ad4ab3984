"""Three sample styles from pictures of scikit-image and scikit-learn.

``photograph`` and ``ground`` (grey stone and grass from close by) are the pictures themselves; ``engraving`` is drawn
from other pictures. A work is either in training or held out.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image

from projects.sample_cache import cache_folder, write_once
from projects.style_transfer.engraving import engraved

WORKS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "train": {
        "engraving": ("coins.png", "ihc.png", "retina.jpg", "rocket.jpg"),
        "ground": ("brick.png", "gravel.png"),
        "photograph": ("astronaut.png", "china.jpg", "flower.jpg", "motorcycle_left.png"),
    },
    "test": {
        "engraving": ("camera.png", "moon.png"),
        "ground": ("grass.png",),
        "photograph": ("chelsea.png", "coffee.png"),
    },
}

SHORT_SIDE = 256
"""Pixels of the shorter side of every work."""

_NAME = "style-transfer-1"


def sample_styles(cache: Path | None = None) -> tuple[Path, Path]:
    """Return training and held-out folder, written on the first call; each holds one folder per style.

    Args:
        cache: the folder to write them to. If ``None``, the user's cache folder.

    Raises:
        DataError: the cache cannot be written to.

    """
    folder = write_once(cache or cache_folder(), _NAME, _write)
    return folder / "train", folder / "test"


def _write(root: Path) -> None:
    shipped = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    for part, styles in WORKS.items():
        for style, works in styles.items():
            (root / part / style).mkdir(parents=True)
            for work in works:
                (source,) = (folder / work for folder in shipped if (folder / work).is_file())
                with Image.open(source) as opened:
                    picture = opened.convert("RGB")
                scale = SHORT_SIDE / min(picture.size)
                picture = picture.resize(
                    (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
                )
                if style == "engraving":
                    picture = Image.fromarray(engraved(np.asarray(picture.convert("L"), np.float32) / np.float32(255)))
                picture.save(root / part / style / f"{source.stem}.png")
