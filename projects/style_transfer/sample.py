"""Three styles that need no download, cut from pictures that scikit-image and scikit-learn ship.

``photograph`` and ``ground`` (grey stone and grass from close by) are as they come; ``engraving`` is drawn from
pictures that the other two do not have. A work is in training or held out, never in both.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import platformdirs
import skimage
import sklearn
from PIL import Image

from mltrain.errors import DataError
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

# The last number changes when the files do; an older folder in the cache is then simply not looked at.
_NAME = "style-transfer-1"


def cache_folder() -> Path:
    """Where sample data is kept: ``$MLTRAIN_CACHE``, else the user's cache folder on this platform."""
    return Path(os.environ.get("MLTRAIN_CACHE") or platformdirs.user_cache_dir("mltrain"))


def sample_styles(cache: Path | None = None) -> tuple[Path, Path]:
    """Return the folders to train on and held out, each with a folder a style; written on the first call.

    The folder appears complete or not at all: it is filled under another name and renamed.

    Args:
        cache: where to keep them (default :func:`cache_folder`).

    Raises:
        DataError: the cache cannot be written to.

    """
    folder = (cache or cache_folder()) / _NAME
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{_NAME}-", dir=folder.parent))
            try:
                _write(unfinished)
                unfinished.chmod(0o755)  # mkdtemp makes it private; the cache may be shared
                unfinished.rename(folder)
            except OSError:
                shutil.rmtree(unfinished)
                if not folder.is_dir():  # else another process was first, with the same files
                    raise
        except OSError as error:
            raise DataError(
                f"The sample data cannot be written to {folder}: {error.strerror or error}. "
                "Name another folder in the environment variable MLTRAIN_CACHE, or train on pictures of your own."
            ) from error
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
