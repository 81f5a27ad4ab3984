"""Small pictures, recordings and studies for a reader's first commands."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from projects.segmentation.folders import FolderPair
from projects.segmentation.synthetic import Blobs
from projects.tool_wear import npz, phm, synthetic
from projects.tool_wear.windows import Windowing
from tests.support import small_codec
from tests.support.reader import Reader


def pictures(reader: Reader) -> None:
    Blobs(height=32, width=32).write(
        FolderPair(images=reader.folder / "images", masks=reader.folder / "masks"), 6, seed=3
    )


def recordings(reader: Reader) -> None:
    phm.write_sample(reader.folder / "phm2010", seed=0, cuts=12, samples=3000)
    phm.write_sample(reader.folder / "recordings", seed=1, cuts=2, samples=3000)
    npz.write(reader.folder / "windows.npz", synthetic.generate(Windowing(steps=32), seed=3, cuts=20))


def styles(reader: Reader) -> None:
    from tests.projects.style_transfer.test_vae import stand_in

    random = np.random.default_rng(0)
    for style, colour in (("dots", 0), ("engraving", 2)):
        (reader.folder / "styles" / style).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 90, (48, 56, 3), np.uint8)
            pixels[number::5, :, colour] = 250
            Image.fromarray(pixels).save(reader.folder / "styles" / style / f"{number}.png")
    (reader.folder / "pictures").mkdir()
    Image.fromarray(random.integers(0, 255, (50, 60, 3), np.uint8)).save(reader.folder / "pictures" / "a.jpg")
    stand_in(reader.folder / "sd-vae", seed=0)
    shutil.copy(small_codec.__file__, reader.folder / "my_codec.py")


def study(reader: Reader) -> None:
    """Write phantoms as files; once more with ACDC values in the cine labels, and once more with EMIDEC values in LGE too."""
    reader.type("python -m projects.cardiac.phantom_source --to study --cases 6", {})
    for name in ("cine_labelled", "labelled"):
        shutil.copytree(reader.folder / "study", reader.folder / name)
        for wall in (reader.folder / name / "labels" / "cmr" / "cmr_Myo_mask").iterdir():
            relabel(wall, lambda myocardium: 2 * myocardium)
    late = reader.folder / "labelled" / "labels" / "lge_original"
    for wall in (late / "lge_Myo_labels").iterdir():
        infarct = np.asarray(nib.load(late / "lge_MI_labels" / wall.name).dataobj) > 0
        relabel(wall, lambda myocardium, infarct=infarct: np.where(infarct, 3, 2 * myocardium))
    shutil.rmtree(late / "lge_MI_labels")


def relabel(file: Path, values: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(file)
    labels = np.asarray(image.dataobj) > 0
    nib.save(nib.Nifti1Image(values(labels.astype(np.uint8)).astype(np.uint8), image.affine, image.header), file)
