from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mltrain.errors import DataError
from projects.style_transfer.engraving import INK, PAPER, engraved
from projects.style_transfer.sample import SHORT_SIDE, WORKS, sample_styles


def test_no_work_is_both_trained_on_and_held_out_and_none_has_two_styles() -> None:
    works = [work for part in WORKS.values() for style in part.values() for work in style]
    assert len(works) == len(set(works))
    assert WORKS["train"].keys() == WORKS["test"].keys()


def test_every_work_is_written_with_the_same_shorter_side() -> None:
    for folder, part in zip(sample_styles(), ("train", "test"), strict=True):
        files = {style.name: sorted(style.iterdir()) for style in folder.iterdir()}
        expected = {style: [Path(work).stem for work in works] for style, works in WORKS[part].items()}
        assert {style: [file.stem for file in found] for style, found in files.items()} == expected
        for file in (file for found in files.values() for file in found):
            with Image.open(file) as picture:
                assert min(picture.size) == SHORT_SIDE
                assert picture.mode == "RGB"


def test_what_was_written_once_is_found_again() -> None:
    train, _ = sample_styles()
    before = train.stat().st_mtime_ns
    assert sample_styles()[0].stat().st_mtime_ns == before


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file.*MLTRAIN_CACHE"):
        sample_styles(tmp_path / "file" / "cache")


def test_an_engraving_has_more_ink_where_it_is_darker_and_no_colours_but_its_own() -> None:
    grey = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (100, 1))
    drawn = engraved(grey).astype(float)
    columns = drawn[..., 0].mean(0)
    assert columns[:20].mean() < columns[90:110].mean() < columns[-20:].mean()
    share = (drawn[..., 0] / 255 - PAPER[0]) / (INK[0] - PAPER[0])
    expected = np.asarray(PAPER) + share[..., None] * (np.asarray(INK) - np.asarray(PAPER))
    assert np.abs(drawn / 255 - expected).max() < 0.01
