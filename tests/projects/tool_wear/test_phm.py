"""PHM 2010's published layout is read; damaged files are named."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mltrain.errors import DataError
from projects.tool_wear import generator, phm
from projects.tool_wear.windows import UNLABELLED, Windowing

WINDOWING = Windowing(steps=32)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder in the published layout, written once."""
    folder = tmp_path_factory.mktemp("phm")
    phm.write_sample(folder, seed=0, cuts=6, samples=1500)
    return folder


@pytest.fixture
def sample(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "phm"))


def test_the_sample_has_the_published_layout(published: Path) -> None:
    files = sorted(file.relative_to(published).as_posix() for file in published.rglob("*.csv"))
    assert files[:3] == ["c1/c1_wear.csv", "c1/c_1_001.csv", "c1/c_1_002.csv"]
    assert len(files) == 3 * 7
    assert (published / "c4" / "c4_wear.csv").read_text().splitlines()[0] == "cut,flute_1,flute_2,flute_3"
    assert len((published / "c1" / "c_1_001.csv").read_text().splitlines()[0].split(",")) == 7


def test_every_cut_becomes_labelled_windows(published: Path) -> None:
    windows = phm.read(published, WINDOWING)
    assert windows.signals.shape == (3 * 6 * 2, 32, 7)
    assert windows.signals.dtype == np.float32
    assert windows.tool_names == ("c1", "c4", "c6")
    assert windows.cuts[:4].tolist() == [1, 1, 2, 2]
    assert windows.channels == ("Fx", "Fy", "Fz", "Vx", "Vy", "Vz", "AE")
    assert set(windows.labels.tolist()) == {0, 1, 2}


def test_the_label_follows_from_the_wear_of_that_cut(published: Path) -> None:
    table = pd.read_csv(published / "c4" / "c4_wear.csv")
    largest = Windowing(steps=32, wear_of="max", per_cut=1)
    windows = phm.read(published, largest).of(["c4"])
    expected = table[["flute_1", "flute_2", "flute_3"]].max(axis=1).to_numpy()
    np.testing.assert_allclose(windows.wear, expected, rtol=1e-6)
    assert np.array_equal(windows.labels, largest.labels(expected))


def test_windows_come_from_the_middles_of_equal_parts(tmp_path: Path) -> None:
    """A ramp over the recording shows where windows were taken."""
    samples = 10_000
    ramp = np.tile(np.arange(samples, dtype=np.float32)[:, None], (1, 7))
    phm.write_tool(tmp_path, 1, ramp[None], np.array([[50.0, 50.0, 50.0]]))
    windows = phm.read(tmp_path, WINDOWING)
    centres = windows.signals.mean(axis=(1, 2))
    np.testing.assert_allclose(centres, [2500, 7500], atol=10)


def test_the_signal_that_is_read_is_the_signal_that_was_recorded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tool = generator.draw_tool(rng)
    wear = generator.wear_of(tool, 2, rng)
    recordings = generator.signals(tool, wear, windows=1, samples=2000, rate=phm.RATE, rng=rng)[:, 0]
    phm.write_tool(tmp_path, 1, recordings, wear)
    one = Windowing(steps=32, per_cut=1)
    start = (2000 - one.samples(10)) // 2
    expected = one.decimated(recordings[:, start : start + one.samples(10)], 10)
    np.testing.assert_allclose(phm.read(tmp_path, one).signals, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("nested", ["c1/c1", "deep/in/a/folder"])
def test_files_are_found_at_any_depth(sample: Path, nested: str) -> None:
    before = phm.read(sample, WINDOWING)
    (sample / nested).mkdir(parents=True)
    for file in (sample / "c1").glob("c_1_*.csv"):
        file.rename(sample / nested / file.name)
    assert np.array_equal(phm.read(sample, WINDOWING).signals, before.signals)


def test_tools_without_wear_are_left_out_and_named(sample: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sample / "c4" / "c4_wear.csv").unlink()
    assert phm.read(sample, WINDOWING).tool_names == ("c1", "c6")
    assert "c4: left out" in caplog.text


def test_a_folder_without_any_wear_cannot_be_trained_on_but_predicted(sample: Path) -> None:
    for file in sample.rglob("*_wear.csv"):
        file.unlink()
    with pytest.raises(DataError, match=r"c1 has no c1_wear\.csv"):
        phm.read(sample, WINDOWING)
    windows = phm.read_unlabelled(sample, WINDOWING)
    assert set(windows.labels.tolist()) == {UNLABELLED}
    assert len(windows) == 3 * 6 * 2


def test_all_damaged_files_are_listed_in_one_error(sample: Path) -> None:
    (sample / "c1" / "c_1_001.csv").write_text("")
    (sample / "c1" / "c_1_002.csv").write_text("Fx,Fy,Fz,Vx,Vy,Vz,AE\n1,2,3,4,5,6,7\n")
    (sample / "c1" / "c_1_003.csv").write_text("1,2,3\n" * 1500)
    (sample / "c1" / "c_1_004.csv").write_text("1,2,3,4,5,6,7\n" * 100)
    (sample / "c1" / "c_1_005.csv").write_text("1,2,3,4,5,6,7\n" * 375 + "1,2,3,4,,6,7\n" + "1,2,3,4,5,6,7\n" * 1124)
    (sample / "c4" / "c4_wear.csv").write_text("cut,flute_1\n1,10\n2,20\n")
    (sample / "c6" / "c6_wear.csv").write_text("cut,wear\n1,10\n")
    with pytest.raises(DataError) as refused:
        phm.read(sample, WINDOWING)
    message = str(refused.value)
    assert "c1/c_1_001.csv: it is empty. Expected 7 columns of numbers" in message
    assert "c1/c_1_002.csv: it cannot be read as numbers" in message
    assert "separated by commas, without a header" in message
    assert "c1/c_1_003.csv: 7 columns were expected (Fx, Fy, Fz, Vx, Vy, Vz, AE), and there are 3" in message
    assert "c1/c_1_004.csv: 2 windows need 1040 lines, and there are 100" in message
    assert "c1/c_1_005.csv: 1 values are missing or not finite, the first in line 376, Vy" in message
    assert "c4_wear.csv: it has no row for the cuts 3, 4, 5, 6" in message
    assert (
        "c6_wear.csv: the columns cut, flute_1, … were expected, separated by commas, and there are cut, wear"
        in message
    )


@pytest.mark.parametrize("row", ["3,abc,1,1", "3,nan,1,1", "3,-1,1,1"])
def test_wear_that_is_no_measurement_is_refused_with_its_line(sample: Path, row: str) -> None:
    file = sample / "c1" / "c1_wear.csv"
    lines = file.read_text().splitlines()
    lines[3] = row
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"c1_wear\.csv: line 4 holds something that is not a number"):
        phm.read(sample, WINDOWING)


def test_a_very_long_list_of_problems_is_cut_short_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "c1"
    folder.mkdir()
    for cut in range(1, 31):
        (folder / f"c_1_{cut:03d}.csv").write_text("")
    pd.DataFrame({"cut": range(1, 31), "flute_1": 10.0}).to_csv(folder / "c1_wear.csv", index=False)
    with pytest.raises(DataError, match="… and 10 more"):
        phm.read(tmp_path, WINDOWING)


def test_the_same_cut_twice_is_refused(sample: Path) -> None:
    (sample / "copy").mkdir()
    shutil.copy(sample / "c1" / "c_1_001.csv", sample / "copy")
    with pytest.raises(DataError, match="are the same cut"):
        phm.read(sample, WINDOWING)


def test_a_tool_with_two_wear_tables_is_refused_with_both_names(sample: Path) -> None:
    (sample / "old").mkdir()
    shutil.copy(sample / "c1" / "c1_wear.csv", sample / "old")
    with pytest.raises(DataError, match=r"old/c1_wear\.csv and c1/c1_wear\.csv are both the wear of tool c1"):
        phm.read(sample, WINDOWING)


def test_a_tool_whose_cuts_lie_in_two_folders_is_refused(sample: Path) -> None:
    (sample / "again").mkdir()
    (sample / "c1" / "c_1_003.csv").rename(sample / "again" / "c_1_003.csv")
    with pytest.raises(DataError, match="tool c1 appears twice: again, c1 hold cuts of it"):
        phm.find(sample)


def test_a_cut_that_stands_twice_in_a_table_is_refused_before_anything_is_kept(sample: Path, tmp_path: Path) -> None:
    with (sample / "c4" / "c4_wear.csv").open("a") as stream:
        stream.write("2,400,400,400\n")
    with pytest.raises(DataError, match=r"c4_wear\.csv: these cuts appear twice: 2 \(lines 3 and 8\)"):
        phm.read_cached(sample, WINDOWING, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_tables_in_millimetres_give_the_windows_of_tables_in_micrometres(sample: Path, tmp_path: Path) -> None:
    expected = phm.read(sample, WINDOWING)
    for file in sample.rglob("*_wear.csv"):
        table = pd.read_csv(file)
        table.iloc[:, 1:] /= 1000
        table.to_csv(file, index=False)
    for _ in ("read", "kept"):
        windows = phm.read_cached(sample, WINDOWING, tmp_path / "cache")
        np.testing.assert_allclose(windows.wear, expected.wear, rtol=1e-5)
        assert np.array_equal(windows.labels, expected.labels)


@pytest.mark.parametrize("missing", ["nothing here", "empty"])
def test_a_folder_without_recordings_is_refused(tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"c1/c_1_001\.csv"):
        phm.read(tmp_path / missing, WINDOWING)


def test_windows_are_kept_and_read_again_only_when_files_or_settings_change(sample: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = phm.read_cached(sample, WINDOWING, cache)
    recording = sample / "c1" / "c_1_001.csv"
    stamp = recording.stat()
    flipped = recording.read_bytes()[::-1]
    recording.write_bytes(flipped)
    os.utime(recording, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    # The content changed behind an unchanged size and time, so what comes now can only be what was kept.
    assert np.array_equal(phm.read_cached(sample, WINDOWING, cache).signals, first.signals)
    assert len(list(cache.iterdir())) == 1

    shutil.copy(sample / "c1" / "c_1_002.csv", recording)
    assert not np.array_equal(phm.read_cached(sample, WINDOWING, cache).signals, first.signals)
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_cache_is_read_anew(sample: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    first = phm.read_cached(sample, WINDOWING, cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(phm.read_cached(sample, WINDOWING, cache).signals, first.signals)
    assert "read anew" in caplog.text


def test_a_cache_that_cannot_be_written_stops_nobody(
    sample: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(phm.read_cached(sample, WINDOWING, tmp_path / "file")) == 36
    assert "cannot be cached" in caplog.text
