"""Sample data without a download: MNI152 white matter, and drawn blobs.

nilearn ships the ICBM152 2009 T1 template (skull-stripped, 1 mm) and its white-matter probability map
(Fonov et al., NeuroImage 54(1), 2011) inside its wheel. Both are cut into axial slices, halved in the plane to 2 mm,
and written as folders of images and masks, so that the project reads them as it reads the user's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nilearn.datasets import load_mni152_template, load_mni152_wm_template
from numpy.typing import NDArray
from PIL import Image

from projects.sample_cache import cache_folder, write_once
from projects.segmentation.folders import FolderPair
from projects.segmentation.synthetic import Blobs

# Neighbouring slices look alike, so the two sets are blocks with five slices (5 mm) between them that neither has.
TRAIN_BLOCKS = (range(26, 51), range(74, 99), range(122, 147))
VAL_BLOCKS = (range(56, 69), range(104, 117))

_MNI152 = "mni152-white-matter-1"
_BLOBS = "blobs-1"


@dataclass(frozen=True, kw_only=True)
class SampleFolders:
    """Training and validation folders of a sample data set."""

    train: FolderPair
    val: FolderPair

    @classmethod
    def under(cls, root: Path) -> "SampleFolders":
        """Return the four folders of a data set below ``root``."""
        train, val = (
            FolderPair(images=root / part / "images", masks=root / part / "masks") for part in ("train", "val")
        )
        return cls(train=train, val=val)


def mni152(cache: Path | None = None) -> SampleFolders:
    """Return the MNI152 folders, written on the first call.

    75 training and 26 validation slices of 112 by 96 pixels, 8-bit grey. A mask is 255 where the white-matter map is
    above one half. The first call takes about a second. If ``cache`` is ``None``, they are in the user's cache folder.
    """
    return SampleFolders.under(write_once(cache or cache_folder(), _MNI152, _write_mni152))


def blobs(cache: Path | None = None) -> SampleFolders:
    """Return folders of drawn blobs, written on the first call.

    64 training and 16 validation pictures of 64 by 64 pixels, always the same ones.
    """
    return SampleFolders.under(write_once(cache or cache_folder(), _BLOBS, _write_blobs))


def _write_mni152(root: Path) -> None:
    brain = _axial(np.asarray(load_mni152_template(resolution=1).dataobj))
    white = _axial(np.asarray(load_mni152_wm_template(resolution=1).dataobj))
    folders = SampleFolders.under(root)
    for pair, blocks in ((folders.train, TRAIN_BLOCKS), (folders.val, VAL_BLOCKS)):
        pair.images.mkdir(parents=True)
        pair.masks.mkdir(parents=True)
        for z in (z for block in blocks for z in block):
            grey = np.rint(255 * brain[z].clip(0, 1)).astype(np.uint8)
            mask = np.where(white[z] > 0.5, 255, 0).astype(np.uint8)
            Image.fromarray(grey).save(pair.images / f"axial_{z:03d}.png")
            Image.fromarray(mask).save(pair.masks / f"axial_{z:03d}.png")


def _write_blobs(root: Path) -> None:
    folders = SampleFolders.under(root)
    drawn = Blobs(height=64, width=64)
    drawn.write(folders.train, 64, seed=1)
    drawn.write(folders.val, 16, seed=2)


def _axial(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slices (189, 112, 96) of a volume (197, 233, 189): anterior at the top, 2x2 pixels averaged, margins cut."""
    slices = volume.transpose(2, 1, 0)[:, ::-1, :][:, 4:228, 2:194]
    return np.asarray(slices.reshape(len(slices), 112, 2, 96, 2).mean((2, 4)), np.float32)
