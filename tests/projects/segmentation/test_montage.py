import numpy as np
import pytest
from PIL import Image

from projects.segmentation.folders import FolderPair, Sample
from projects.segmentation.framing import Framing
from projects.segmentation.labels import Declaration
from projects.segmentation.legend import VOID_COLOUR, class_colours
from projects.segmentation.montage import montage
from projects.segmentation.summary import summary
from tests.projects.segmentation.conftest import survey


@pytest.fixture
def organs(folders: FolderPair) -> tuple[Sample, ...]:
    """Grey pictures with two classes and a void corner."""
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15], mask[25:35], mask[:5, :12] = 3, 7, 255
    for stem in ("a", "b"):
        Image.fromarray(np.full((40, 60), 90, np.uint8)).save(folders.images / f"{stem}.png")
        Image.fromarray(mask).save(folders.masks / f"{stem}.png")
    return survey(folders, declaration=Declaration.of(None, "255", ["liver=3", "vessel=7"])).samples


def has(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    """Whether a square of the legend has the colour; single pixels of its text may have any grey."""
    return int((np.asarray(picture) == colour).all(axis=2).sum()) > 100


def legend_of(sheet: Image.Image) -> Image.Image:
    return sheet.crop((0, sheet.height - 24, sheet.width, sheet.height))


def test_the_montage_shows_every_class_and_names_it(organs: tuple[Sample, ...], blobs: tuple[Sample, ...]) -> None:
    sheet = montage(organs)
    for colour in (*class_colours(2), VOID_COLOUR):
        assert has(sheet, colour), "a square of the legend"
    assert not has(legend_of(montage(blobs)), VOID_COLOUR)
    assert has(legend_of(sheet), VOID_COLOUR)
    assert montage(blobs * 5).height == montage((blobs * 2)[:12]).height, "a dozen at most"


def test_the_first_lines_show_pairs_sizes_and_shares(organs: tuple[Sample, ...]) -> None:
    pairs, masks, scale = summary(organs, organs[:1], Framing((40, 64)))
    assert "2 to train on, 1 held out" in pairs
    assert "40x60" in pairs
    assert "liver = 3; vessel = 7; void = 255; liver 25.0 %, vessel 25.0 %, void 2.5 %" in masks
    assert "keeps its own" in scale


def test_the_first_lines_warn_of_scales_and_small_crops(blobs: tuple[Sample, ...]) -> None:
    stretched = summary(blobs, blobs, Framing((16, 16), (16, 16), (1.0, 1.0)))
    assert "WARNING 6 of 6 held-out images, such as one of 40x56" in stretched[-1]
    assert "A crop shows 2.9 % of the median image" in summary(blobs, blobs, Framing((8, 8)))[-1]
