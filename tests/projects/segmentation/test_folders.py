from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mltrain.errors import DataError
from projects.segmentation.folders import FolderPair, pictures_in, require_sound
from tests.projects.segmentation.conftest import survey

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
MASK = np.where(GREY > 100, 255, 0).astype(np.uint8)


def put(file: Path, pixels: NDArray[np.generic] = GREY) -> None:
    Image.fromarray(pixels).save(file)


@pytest.mark.parametrize("mask", ["a.png", "a_mask.png", "a.bmp", "a_mask.TIF"])
def test_an_image_and_its_mask_are_paired_by_stem_whatever_their_endings(folders: FolderPair, mask: str) -> None:
    put(folders.images / "a.jpg")
    put(folders.masks / mask, MASK)
    (sample,) = survey(folders).samples
    assert (sample.image, sample.mask) == (folders.images / "a.jpg", folders.masks / mask)
    assert (sample.stem, sample.height, sample.width, sample.channels) == ("a", 6, 8, 1)
    assert sample.foreground == (GREY > 100).sum()


def test_the_samples_come_in_the_order_of_their_names(folders: FolderPair) -> None:
    for stem in ("c", "a.x", "b", "a"):
        put(folders.images / f"{stem}.png")
        put(folders.masks / f"{stem}.png", MASK)
    assert [sample.stem for sample in survey(folders).samples] == ["a", "a.x", "b", "c"]


def test_one_folder_may_hold_images_and_masks(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "a_mask.png", MASK)
    (sample,) = survey(FolderPair(images=tmp_path, masks=tmp_path)).samples
    assert (sample.image.name, sample.mask.name) == ("a.png", "a_mask.png")


def test_an_image_whose_own_name_ends_in_mask_is_paired_with_its_namesake(folders: FolderPair) -> None:
    for stem in ("gas", "gas_mask"):
        put(folders.images / f"{stem}.png")
        put(folders.masks / f"{stem}.png", MASK)
    assert [sample.mask.stem for sample in survey(folders).samples] == ["gas", "gas_mask"]


def test_mean_and_mean_square_are_those_of_the_pixels_in_0_to_1(folders: FolderPair) -> None:
    put(folders.images / "a.png")
    put(folders.masks / "a.png", MASK)
    (sample,) = survey(folders).samples
    assert sample.mean == pytest.approx(GREY.mean() / 255)
    assert sample.mean_square == pytest.approx((GREY.astype(float) ** 2).mean() / 255**2)


def test_other_files_are_passed_over(folders: FolderPair) -> None:
    for folder in (folders.images, folders.masks):
        (folder / "notes.txt").write_text("no picture")
        (folder / "._a.png").write_bytes(b"left by a file manager")
        (folder / "more").mkdir()
    put(folders.images / "a.png")
    put(folders.masks / "a.png", MASK)
    assert len(survey(folders).samples) == 1
    assert not survey(folders).problems


def broken_image(folders: FolderPair) -> None:
    (folders.images / "cut.png").write_bytes((folders.images / "good.png").read_bytes()[:45])
    put(folders.masks / "cut.png", MASK)


def broken_mask(folders: FolderPair) -> None:
    put(folders.images / "text.png")
    (folders.masks / "text.png").write_text("no picture")


def several_pages(folders: FolderPair) -> None:
    put(folders.images / "stack.png")
    first = Image.fromarray(MASK)
    first.save(folders.masks / "stack.tif", save_all=True, append_images=[first])


def lone_image(folders: FolderPair) -> None:
    put(folders.images / "lonely.jpg")


def lone_mask(folders: FolderPair) -> None:
    put(folders.masks / "widowed_mask.png", MASK)


def other_size(folders: FolderPair) -> None:
    put(folders.images / "wide.png", GREY)
    put(folders.masks / "wide.png", MASK.T)


def same_stem_of_images(folders: FolderPair) -> None:
    put(folders.images / "twin.png")
    put(folders.images / "twin.jpg")
    put(folders.masks / "twin.png", MASK)


def same_stem_of_masks(folders: FolderPair) -> None:
    put(folders.images / "both.png")
    put(folders.masks / "both.png", MASK)
    put(folders.masks / "both_mask.png", MASK)


def empty_mask(folders: FolderPair) -> None:
    put(folders.images / "void.png")
    put(folders.masks / "void.png", MASK * 0)


FAILURES: dict[Callable[[FolderPair], None], tuple[str, str]] = {
    broken_image: ("unreadable images", "cut.png"),
    broken_mask: ("unreadable masks", "text.png"),
    several_pages: ("unreadable masks", "stack.tif"),
    lone_image: ("images without a mask", "lonely.jpg"),
    lone_mask: ("masks without an image", "widowed_mask.png"),
    other_size: ("different size", "wide.png 6x8, wide.png 8x6"),
    same_stem_of_images: ("images with the same stem", "twin.jpg, twin.png"),
    same_stem_of_masks: ("masks for the same image", "both.png, both_mask.png"),
    empty_mask: ("without foreground", "void.png"),
}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_each_failure_is_named_and_leaves_the_other_samples_alone(
    folders: FolderPair, failure: Callable[[FolderPair], None]
) -> None:
    put(folders.images / "good.png")
    put(folders.masks / "good.png", MASK)
    failure(folders)
    surveyed = survey(folders)
    (problem,) = surveyed.problems
    kind, subject = FAILURES[failure]
    assert kind in problem.kind
    assert problem.subject.startswith(subject)
    assert [sample.stem for sample in surveyed.samples] == ["good"]


def test_all_failures_stand_in_one_error(folders: FolderPair) -> None:
    put(folders.images / "good.png")
    put(folders.masks / "good.png", MASK)
    for failure in FAILURES:
        failure(folders)
    with pytest.raises(DataError) as error:
        require_sound([(folders, survey(folders))])
    message = str(error.value)
    for kind, subject in FAILURES.values():
        assert kind in message
        assert subject in message
    assert str(folders.images) in message
    assert "good.png" not in message


def test_failures_of_training_and_validation_folders_stand_in_one_error(folders: FolderPair, tmp_path: Path) -> None:
    others = FolderPair(images=tmp_path / "images2", masks=tmp_path / "masks2")
    for pair in (folders, others):
        pair.images.mkdir(exist_ok=True)
        pair.masks.mkdir(exist_ok=True)
        put(pair.images / f"{pair.images.name}.png")
        put(pair.masks / "unlike.png", MASK)
    with pytest.raises(DataError, match=r"(?s)images\.png.*images2\.png"):
        require_sound((pair, survey(pair)) for pair in (folders, others))


def test_the_error_counts_what_it_does_not_list(folders: FolderPair) -> None:
    put(folders.images / "good.png")
    put(folders.masks / "good.png", MASK)
    for index in range(103):
        put(folders.images / f"{index:03d}.bmp")
    with pytest.raises(DataError, match=r"(?s)without a mask: 103\n.*099\.bmp\n.*3 more"):
        require_sound([(folders, survey(folders))])


def test_empty_masks_are_kept_or_dropped_on_request(folders: FolderPair) -> None:
    put(folders.images / "good.png")
    put(folders.masks / "good.png", MASK)
    empty_mask(folders)
    assert [s.stem for s in survey(folders, empty_masks="keep").samples] == ["good", "void"]
    assert [s.stem for s in survey(folders, empty_masks="drop").samples] == ["good"]
    assert not survey(folders, empty_masks="drop").problems


def test_the_error_about_empty_masks_says_how_many_and_how_to_accept_them(folders: FolderPair) -> None:
    for stem in "abc":
        put(folders.images / f"{stem}.png")
        put(folders.masks / f"{stem}.png", MASK * 0)
    with pytest.raises(DataError, match=r"without foreground \(empty_masks=keep .*\): 3"):
        require_sound([(folders, survey(folders))])


def test_dropping_every_sample_is_an_error(folders: FolderPair) -> None:
    empty_mask(folders)
    with pytest.raises(DataError, match="no sample is left"):
        require_sound([(folders, survey(folders, empty_masks="drop"))])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        pictures_in(tmp_path / "nowhere")


def test_a_folder_without_pictures_says_which_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 entries and no picture; \.png"):
        pictures_in(tmp_path)


def test_names_that_differ_in_unicode_form_or_case_are_paired_with_a_hint(
    folders: FolderPair, caplog: pytest.LogCaptureFixture
) -> None:
    put(folders.images / "Zelle_é.png".replace("é", "e\u0301"))
    put(folders.masks / "zelle_é_MASK.png", MASK)
    found = survey(folders)
    assert not found.problems
    assert len(found.samples) == 1
    assert "names differ in Unicode form or capital letters" in caplog.text


def test_a_mask_suffix_of_ones_own(folders: FolderPair) -> None:
    put(folders.images / "a.png")
    put(folders.masks / "a_seg.png", MASK)
    assert survey(folders, mask_suffix="_seg").samples[0].mask.name == "a_seg.png"
    assert "mask_suffix=_seg" in [problem.subject for problem in survey(folders).problems]
