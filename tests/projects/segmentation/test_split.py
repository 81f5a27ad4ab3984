from collections.abc import Sequence
from pathlib import Path

import pytest

from mltrain.errors import DataError
from projects.segmentation.folders import Sample
from projects.segmentation.split import drawn, tabled


def samples(*stems: str) -> list[Sample]:
    return [
        Sample(
            stem=stem,
            image=Path(f"{stem}.png"),
            mask=Path(f"{stem}.png"),
            height=8,
            width=8,
            channels=1,
            foreground=1,
            mean=0.5,
            mean_square=0.3,
        )
        for stem in stems
    ]


def stems(part: Sequence[Sample]) -> list[str]:
    return [sample.stem for sample in part]


HUNDRED = samples(*(f"s{index:02d}" for index in range(100)))
TILES = samples(*(f"scan{scan}_tile{tile}" for scan in range(8) for tile in range(1 + scan)))


def test_a_draw_parts_all_samples_at_the_wanted_share() -> None:
    train, val = drawn(HUNDRED, 0.2, seed=0)
    assert len(val) == 20
    assert sorted(stems(train) + stems(val)) == stems(HUNDRED)


def test_a_draw_follows_from_names_and_seed_alone() -> None:
    assert drawn(HUNDRED, 0.2, seed=1) == drawn(HUNDRED, 0.2, seed=1)
    assert set(drawn(HUNDRED, 0.2, seed=1)[1]) == set(drawn(HUNDRED[::-1], 0.2, seed=1)[1])
    assert drawn(HUNDRED, 0.2, seed=1) != drawn(HUNDRED, 0.2, seed=2)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_either_side_keeps_a_sample(fraction: float) -> None:
    train, val = drawn(HUNDRED[:3], fraction, seed=0)
    assert train
    assert val


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("regex", [r"^scan\d+", r"scan(\d+)_"], ids=["whole match", "group in parentheses"])
def test_a_group_is_never_on_both_sides(seed: int, regex: str) -> None:
    train, val = drawn(TILES, 0.3, seed, regex)
    groups = [{stem.split("_")[0] for stem in stems(part)} for part in (train, val)]
    assert groups[0].isdisjoint(groups[1])
    assert len(train) + len(val) == len(TILES)
    assert abs(len(val) - 0.3 * len(TILES)) <= 8  # no closer than one group


def test_a_stem_without_a_group_is_named() -> None:
    with pytest.raises(DataError, match="does not match 1 stems: other"):
        drawn([*TILES, *samples("other")], 0.3, 0, r"^scan\d+")


def test_a_single_group_cannot_be_parted() -> None:
    with pytest.raises(DataError, match="another group_regex"):
        drawn(TILES, 0.3, 0, "scan")


def test_a_single_sample_cannot_be_parted() -> None:
    with pytest.raises(DataError, match="1 sample: nothing can be held out"):
        drawn(HUNDRED[:1], 0.3, 0)


def table(folder: Path, text: str) -> Path:
    (file := folder / "splits.csv").write_text(text)
    return file


def test_a_table_says_what_is_held_out_and_what_is_left_out(tmp_path: Path) -> None:
    file = table(tmp_path, "split,stem,note\nval,b,x\ntrain,a,\ntest,c,\ntrain,d.png,\n")
    train, val = tabled(samples("a", "b", "c", "d"), file)
    assert (stems(train), stems(val)) == (["a", "d"], ["b"])


def test_stems_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    train, val = tabled(samples("001", "1e3"), table(tmp_path, "stem,split\n001,train\n1e3,val\n"))
    assert (stems(train), stems(val)) == (["001"], ["1e3"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stem,split\na,train\n", "without a row: b"),
        ("stem,split\na,train\nb,val\nz,val\n", "without an image: z"),
        ("stem,split\na,train\nb,val\na,val\n", "listed twice: a"),
        ("stem,split\na,train\nb,validation\n", "other than train, val and test: b"),
        ("stem,split\na,train\nb,train\n", "2 samples to train and 0 to val"),
        ("name,part\na,train\nb,val\n", "columns name, part. Expected stem and split"),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_says_why(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        tabled(samples("a", "b"), table(tmp_path, text))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"splits\.csv cannot be read"):
        tabled(samples("a", "b"), tmp_path / "splits.csv")
