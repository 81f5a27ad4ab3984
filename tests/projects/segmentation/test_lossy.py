from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from projects.segmentation.folders import FolderPair
from projects.segmentation.labels import Declaration
from projects.segmentation.lossy import TooGrey, boundary
from tests.projects.segmentation.conftest import survey

YY, XX = np.mgrid[:64, :64]
DISC = np.hypot(YY - 30, XX - 34) < 17


def put(folders: FolderPair, **masks: NDArray[np.uint8]) -> FolderPair:
    for stem, mask in masks.items():
        Image.fromarray(mask).save(folders.images / f"{stem}.png")
        Image.fromarray(mask).save(folders.masks / f"{stem}.jpg", quality=70)
    return folders


@pytest.mark.parametrize("ending", ["jpg", "webp"])
@pytest.mark.parametrize("white", [100, 180, 255])
def test_a_lossy_mask_of_two_values_is_cut_between_them(tmp_path: Path, ending: str, white: int) -> None:
    folders = FolderPair(images=tmp_path, masks=tmp_path)
    Image.fromarray(DISC.astype(np.uint8) * white).save(tmp_path / f"a_mask.{ending}", quality=70)
    Image.fromarray(DISC.astype(np.uint8)).save(tmp_path / "a.png")
    (sample,) = survey(folders).samples
    assert sample.foreground == pytest.approx(DISC.sum(), rel=0.02)


def test_a_lossy_mask_of_one_value_means_what_it_means_in_the_others(folders: FolderPair) -> None:
    black = np.zeros_like(DISC, np.uint8)
    found = survey(put(folders, a=DISC.astype(np.uint8) * 255, b=black, c=black + 255), empty_masks="keep").samples
    assert [sample.foreground for sample in found[1:]] == [0, DISC.size]


def test_lossless_webp_holds_exact_values(tmp_path: Path) -> None:
    labels = (DISC.astype(int) + (XX > 40)).astype(np.uint8) * 5
    Image.fromarray(labels).save(tmp_path / "a_mask.webp", lossless=True)
    Image.fromarray(labels).save(tmp_path / "a.png")
    (sample,) = survey(
        FolderPair(images=tmp_path, masks=tmp_path), declaration=Declaration.of(None, None, ["5", "10"])
    ).samples
    assert sample.per_class == ((labels == 5).sum(), (labels == 10).sum())


@pytest.mark.parametrize("levels", [(0, 85, 170), (0, 128, 255)], ids=str)
def test_lossy_masks_of_three_levels_are_refused(folders: FolderPair, levels: tuple[int, ...]) -> None:
    three = np.array(levels, np.uint8)[DISC.astype(int) + (DISC & (XX > 34))]
    (problem,) = survey(put(folders, a=three)).problems
    assert "more than two values" in problem.kind


def test_a_photograph_is_no_mask(folders: FolderPair) -> None:
    (problem,) = survey(put(folders, a=(4 * XX).astype(np.uint8))).problems
    assert "near neither" in problem.kind


def test_small_labels_in_a_lossy_format_are_refused() -> None:
    with pytest.raises(TooGrey, match="labels do not survive"):
        boundary({"a.jpg": {0: 100, 1: 50, 2: 3}})


def test_values_of_lossy_masks_cannot_be_declared(folders: FolderPair) -> None:
    put(folders, a=DISC.astype(np.uint8) * 255)
    (problem,) = survey(folders, declaration=Declaration.of("nonzero", None, None)).problems
    assert "lossy format" in problem.kind
