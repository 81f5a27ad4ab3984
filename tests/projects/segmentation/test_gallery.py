from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mltrain.delivery.images import as_image, ui_stem
from mltrain.errors import DataError
from projects.segmentation.folders import Sample
from projects.segmentation.gallery import Gallery
from projects.segmentation.model import SegmentationNet
from projects.segmentation.predict import Segmenter


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmentationNet(1, (40, 56), 0.4, 0.1), (40, 56))


def test_samples_are_taken_at_even_distances(segmenter: Segmenter, blobs: tuple[Sample, ...]) -> None:
    names = list(Gallery(segmenter, blobs, None, most=3)())
    assert names == ["val/1_blobs_001", "val/2_blobs_003", "val/3_blobs_005"]


@pytest.mark.parametrize(("most", "shown"), [(0, 0), (1, 1), (6, 6), (100, 6)])
def test_no_more_are_shown_than_there_are_or_are_wanted(
    segmenter: Segmenter, blobs: tuple[Sample, ...], most: int, shown: int
) -> None:
    assert len(Gallery(segmenter, blobs, None, most)()) == shown


def test_the_same_pictures_show_what_the_network_makes_of_them_by_now(
    segmenter: Segmenter, blobs: tuple[Sample, ...]
) -> None:
    gallery = Gallery(segmenter, blobs, None, most=2)
    before, again = gallery(), gallery()
    with torch.no_grad():
        for weight in segmenter.net.parameters():
            weight += 0.1
    after = gallery()
    assert before.keys() == again.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], again[name])
        assert not np.array_equal(before[name], after[name])


def test_images_without_a_truth_are_shown_as_well(segmenter: Segmenter, blobs: tuple[Sample, ...]) -> None:
    pictures = Gallery(segmenter, blobs, blobs[0].image.parent, most=2)()
    assert list(pictures) == ["val/1_blobs_001", "val/2_blobs_004", "test/1_blobs_001", "test/2_blobs_004"]


def test_names_suit_mlflow_and_stay_apart(segmenter: Segmenter, blobs: tuple[Sample, ...]) -> None:
    odd = [replace(sample, stem=stem) for sample, stem in zip(blobs, ("größe+1", "größe~1", "x" * 300), strict=False)]
    pictures = Gallery(segmenter, odd, None, most=3)()
    assert len(pictures) == 3
    for name, picture in pictures.items():
        assert ui_stem(name, step=1, timestamp=2, identifier=3)
        assert as_image(picture).mode == "RGB"


def test_an_unreadable_image_is_named_before_training_begins(
    tmp_path: Path, segmenter: Segmenter, blobs: tuple[Sample, ...]
) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(DataError, match=r"broken\.png is not a picture.*test_image_dir"):
        Gallery(segmenter, blobs, tmp_path, most=1)
