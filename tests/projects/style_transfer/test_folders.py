from pathlib import Path

import pytest
from PIL import Image

from mltrain.errors import DataError
from projects.style_transfer.folders import styles_in


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(folder / name)


def test_every_folder_is_a_style(styles: Path) -> None:
    found = styles_in(styles)
    assert [(style.name, len(style.train), len(style.held_out)) for style in found] == [
        ("dots", 4, 1),
        ("stripes", 3, 1),
    ]


def test_the_draw_is_the_same_each_time_and_another_one_with_another_seed(styles: Path) -> None:
    assert styles_in(styles) == styles_in(styles)
    held_out = {styles_in(styles, split_seed=seed)[0].held_out for seed in range(8)}
    assert len(held_out) > 1
    for style in styles_in(styles, fraction=0.5):
        assert set(style.train).isdisjoint(style.held_out)


def test_a_folder_of_held_out_works_leaves_all_others_to_train_on(styles: Path, tmp_path: Path) -> None:
    fill(tmp_path / "test" / "dots", "a.png")
    fill(tmp_path / "test" / "stripes", "b.png", "c.png")
    found = styles_in(styles, tmp_path / "test")
    assert [(len(style.train), len(style.held_out)) for style in found] == [(5, 1), (4, 2)]


def test_a_style_of_which_nothing_is_held_out_is_named(styles: Path, tmp_path: Path) -> None:
    fill(tmp_path / "test" / "dots", "a.png")
    with pytest.raises(DataError, match="No pictures of stripes"):
        styles_in(styles, tmp_path / "test")


def test_the_layout_of_cyclegan_is_two_styles_with_what_they_hold_out(tmp_path: Path) -> None:
    for name, count in (("trainA", 3), ("trainB", 2), ("testA", 1), ("testB", 2)):
        fill(tmp_path / "monet" / name, *(f"{index}.jpg" for index in range(count)))
    found = styles_in(tmp_path / "monet")
    assert [(style.name, len(style.train), len(style.held_out)) for style in found] == [("A", 3, 1), ("B", 2, 2)]


def test_cyclegan_without_a_test_part_is_split_by_a_draw(tmp_path: Path) -> None:
    for name in ("trainA", "trainB"):
        fill(tmp_path / "monet" / name, *(f"{index}.jpg" for index in range(5)))
    assert [(style.name, len(style.held_out)) for style in styles_in(tmp_path / "monet")] == [("A", 1), ("B", 1)]


@pytest.mark.parametrize(
    "held_out", [("trainA", "trainB"), ("testA", "testB"), ("A", "B"), ("trainA", "testA", "testB")]
)
@pytest.mark.parametrize("prefix", ["train", ""])
def test_a_held_out_folder_may_have_the_layout_of_cyclegan_too(
    prefix: str, held_out: tuple[str, ...], tmp_path: Path
) -> None:
    for style in "AB":
        fill(tmp_path / "monet" / f"{prefix}{style}", "0.jpg", "1.jpg")
    for name in held_out:
        fill(tmp_path / "test" / name, f"{name}.jpg")
    expected = [f"test{style}" if "testA" in held_out else name for style, name in zip("AB", held_out, strict=False)]
    found = styles_in(tmp_path / "monet", tmp_path / "test")
    assert [(style.name, [file.stem for file in style.held_out]) for style in found] == [
        ("A", [expected[0]]),
        ("B", [expected[1]]),
    ]


@pytest.mark.parametrize("test", ["monet", "monet/../monet"])
def test_what_is_trained_on_cannot_be_held_out(test: str, tmp_path: Path) -> None:
    for name in ("trainA", "trainB"):
        fill(tmp_path / "monet" / name, "0.jpg", "1.jpg")
    with pytest.raises(DataError, match=r"2 pictures of A are both trained on and held out, such as .*0\.jpg"):
        styles_in(tmp_path / "monet", tmp_path / test)


def test_one_style_is_not_enough(tmp_path: Path) -> None:
    fill(tmp_path / "root" / "only", "a.png", "b.png")
    with pytest.raises(DataError, match=r"1 folders of pictures\. Expected at least two styles"):
        styles_in(tmp_path / "root")


def test_a_style_with_one_picture_is_named(styles: Path) -> None:
    fill(styles / "lonely", "a.png")
    with pytest.raises(DataError, match="'lonely' has one picture"):
        styles_in(styles)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        styles_in(tmp_path / "nowhere")
