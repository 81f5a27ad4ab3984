from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.segmentation.folders import FolderPair, require_sound, survey_all
from projects.segmentation.labels import Declaration
from projects.segmentation.pixels import read_classes
from tests.projects.segmentation.conftest import save, survey


def write_masks(folders: FolderPair, **masks: NDArray[np.generic]) -> FolderPair:
    for stem, mask in masks.items():
        save(np.zeros(mask.shape[:2], np.uint8), folders.images / f"{stem}.png")
        save(mask, folders.masks / f"{stem}.png")
    return folders


TOP = np.zeros((6, 8), np.uint8)
TOP[:2] = 1


@pytest.mark.parametrize("white", [1, 2, 100, 127, 128, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_two_values_are_background_and_foreground_whatever_they_are(
    folders: FolderPair, white: int, dtype: type
) -> None:
    found = survey(
        write_masks(folders, a=(TOP * white).astype(dtype), empty=(TOP * 0).astype(dtype)), empty_masks="keep"
    )
    assert [sample.foreground for sample in found.samples] == [16, 0]


def test_a_mask_of_one_value_means_what_it_means_in_the_other_masks(folders: FolderPair) -> None:
    masks = {"both": TOP + 1, "low": TOP * 0 + 1, "high": TOP * 0 + 2}
    found = survey(write_masks(folders, **masks), empty_masks="keep")
    assert {sample.stem: sample.foreground for sample in found.samples} == {"both": 16, "low": 0, "high": 48}


def test_the_rule_holds_for_training_and_held_out_masks_together(folders: FolderPair, tmp_path: Path) -> None:
    write_masks(folders, a=TOP + 1)
    others = FolderPair(images=tmp_path / "images2", masks=tmp_path / "masks2")
    others.images.mkdir()
    others.masks.mkdir()
    write_masks(others, b=TOP * 0 + 1)
    _, held_out = survey_all([folders, others], empty_masks="keep")
    assert held_out.samples[0].foreground == 0
    write_masks(others, c=TOP * 255)
    with pytest.raises(DataError, match=r"(?s)more than two values.*255 in 1 mask: c\.png"):
        require_sound(zip((folders, others), survey_all([folders, others]), strict=True))


@pytest.mark.parametrize(
    "values", [(0, 1, 255), (0, 85, 170), (0, 64, 128, 192), tuple(range(184)), (0, 127, 255)], ids=str
)
def test_more_than_two_values_are_refused_and_listed(folders: FolderPair, values: tuple[int, ...]) -> None:
    mask = np.resize(np.array(values, np.uint8), (len(values) + 1, 5))
    with pytest.raises(DataError, match=f"(?s)foreground=nonzero.*void=255.*{values[1]}.*{values[-1]}") as error:
        require_sound([(folders, survey(write_masks(folders, a=mask)))])
    assert "a.png" in str(error.value)


def test_instance_labels_are_foreground_where_that_is_declared(folders: FolderPair) -> None:
    instances = np.arange(48, dtype=np.uint16).reshape(6, 8) * 300
    (sample,) = survey(write_masks(folders, a=instances), declaration=Declaration.of("nonzero", None, None)).samples
    assert sample.foreground == 47
    np.testing.assert_array_equal(read_classes(sample.mask, sample.labels), instances > 0)


def test_void_pixels_are_neither_foreground_nor_background(folders: FolderPair) -> None:
    mask = TOP.copy()
    mask[2] = 255
    (sample,) = survey(write_masks(folders, a=mask), declaration=Declaration.of(None, "255", None)).samples
    assert (sample.foreground, sample.void) == (16, 8)
    assert np.unique(read_classes(sample.mask, sample.labels)[2]).tolist() == [-1]


def test_masks_that_are_void_all_over_leave_nothing_to_learn(folders: FolderPair) -> None:
    given = {"empty_masks": "keep", "declaration": Declaration.of(None, "255", None)}
    write_masks(folders, a=TOP * 0 + 255, b=TOP)
    require_sound([(folders, survey(folders, **given))])
    write_masks(folders, a=TOP * 0 + 255, b=TOP * 0 + 255)
    with pytest.raises(DataError, match="every pixel of every mask is void"):
        require_sound([(folders, survey(folders, **given))])


def test_a_declared_value_that_no_mask_holds_is_refused(folders: FolderPair) -> None:
    write_masks(folders, a=TOP * 255)
    for declaration in (Declaration.of("5", None, None), Declaration.of(None, None, ["255", "7"])):
        (problem, *_) = survey(folders, declaration=declaration).problems
        assert "5" in problem.kind or "7" in problem.subject
