from pathlib import Path

import pytest

from projects.segmentation.pairing import FolderPair, paired


def put(folders: FolderPair, images: str, masks: str) -> FolderPair:
    for folder, names in ((folders.images, images), (folders.masks, masks)):
        for name in names.split():
            (folder / name).touch()
    return folders


def pairs(folders: FolderPair, **options: str) -> dict[str, str]:
    return {pair.image.name: pair.mask.name for pair in paired(folders, **options).pairs}


@pytest.mark.parametrize("mask", ["a.webp", "a.TIF", "a_mask.webp"])
def test_every_ending_that_is_read_pairs(folders: FolderPair, mask: str) -> None:
    assert pairs(put(folders, "a.webp", mask)) == {"a.webp": mask}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("IMG_1.jpg", "img_1.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("a.png", "A_Mask.png"),
        ("stra\u00dfe.png", "STRASSE.png"),
    ],
)
def test_similar_names_pair_with_a_hint(folders: FolderPair, image: str, mask: str) -> None:
    found = paired(put(folders, image, mask))
    assert [(pair.image.name, pair.mask.name) for pair in found.pairs] == [(image, mask)]
    assert found.hints == (f"{image} with {mask}",)
    assert not found.problems


def test_an_exact_name_goes_before_a_similar_one(folders: FolderPair) -> None:
    found = paired(put(folders, "a.png A.png", "a.png A.png"))
    assert {pair.image.name: pair.mask.name for pair in found.pairs} == {"a.png": "a.png", "A.png": "A.png"}
    assert not found.hints


def test_a_similar_name_of_two_images_is_left_alone(folders: FolderPair) -> None:
    found = paired(put(folders, "ab.png Ab.png", "AB.png"))
    assert not found.pairs
    assert "masks without an image" in {problem.kind for problem in found.problems}


def test_two_masks_of_similar_names_are_two_masks_for_one_image(folders: FolderPair) -> None:
    found = paired(put(folders, "ab.png", "AB.png aB.png"))
    assert [problem.kind for problem in found.problems] == ["masks for the same image"]


def test_a_suffix_of_ones_own_also_in_one_folder(folders: FolderPair, tmp_path: Path) -> None:
    assert pairs(put(folders, "a.png b.png", "a_label.png b_label.png"), suffix="_label") == {
        "a.png": "a_label.png",
        "b.png": "b_label.png",
    }
    both = FolderPair(images=tmp_path, masks=tmp_path)
    assert pairs(put(both, "c.png c_label.png", ""), suffix="_label") == {"c.png": "c_label.png"}


def test_the_suffix_that_all_masks_share_is_proposed(folders: FolderPair) -> None:
    problems = paired(put(folders, "a.png b.png", "a_segmentation.png b_segmentation.png")).problems
    assert "mask_suffix=_segmentation" in [problem.subject for problem in problems]


def test_no_suffix_is_proposed_where_masks_share_none(folders: FolderPair) -> None:
    problems = paired(put(folders, "a.png b.png", "a_x.png b_y.png")).problems
    assert not [problem for problem in problems if "mask_suffix" in problem.subject]
