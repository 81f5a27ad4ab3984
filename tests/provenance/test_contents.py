"""The digest of a place: every byte counts, nothing but names and bytes counts, and nothing is read twice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mltrain.provenance import fingerprint
from mltrain.provenance.contents import contents_of
from mltrain.provenance.fingerprint import ABSENT, data, same_data

OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of 300 small files and a larger one. All of them are old."""
    folder = tmp_path / "place"
    for number in range(300):
        file = folder / f"{number % 7}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number}")
    (folder / "large.bin").write_bytes(bytes(10**6))
    for file in folder.rglob("*"):
        os.utime(file, (OLD, OLD))
    return folder


def digest(place: Path) -> str:
    return data({"data": place})["data"]


def flip(file: Path, offset: int) -> None:
    """Change one byte and restore the file's time."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(b"x")
    os.utime(file, (OLD, OLD))


@pytest.mark.parametrize("offset", [0, 65_536, 500_000, 999_999])
def test_a_byte_anywhere_in_a_large_file_counts(offset: int, place: Path) -> None:
    before = digest(place)
    flip(place / "large.bin", offset)
    assert digest(place) != before


@pytest.mark.parametrize("number", [0, 1, 150, 233, 299])
def test_a_byte_in_any_of_many_files_counts(number: int, place: Path) -> None:
    before = digest(place)
    flip(place / f"{number % 7}" / f"{number}.txt", 0)
    assert digest(place) != before


def test_times_and_places_do_not_count(place: Path, tmp_path: Path) -> None:
    before = digest(place)
    shutil.copytree(place, tmp_path / "copy")
    (tmp_path / "link").symlink_to(place)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (place / "3" / name).write_text("left by a desktop")
    assert digest(place) == digest(tmp_path / "copy") == digest(tmp_path / "link") == before


def swap(place: Path) -> None:
    (place / "0" / "0.txt").write_text("7")
    (place / "0" / "7.txt").write_text("0")


def rename(place: Path) -> None:
    (place / "0" / "0.txt").rename(place / "0" / "00.txt")


def add(place: Path) -> None:
    (place / "0" / "empty").touch()


def remove(place: Path) -> None:
    (place / "large.bin").unlink()


def hide(place: Path) -> None:
    (place / ".hidden").write_text("x")


@pytest.mark.parametrize("change", [swap, rename, add, remove, hide])
def test_names_count(change: object, place: Path) -> None:
    before = digest(place)
    change(place)  # type: ignore[operator]
    assert digest(place) != before


def test_what_a_link_leads_to_counts_and_a_circle_ends(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("1")
    (place / "linked").symlink_to(tmp_path / "elsewhere")
    (place / "circle").symlink_to(place)
    (place / "nowhere").symlink_to(tmp_path / "nowhere")
    before = digest(place)
    (tmp_path / "elsewhere" / "file").write_text("2")
    assert digest(place) != before


def test_a_place_that_is_not_there_or_cannot_be_is_absent(tmp_path: Path) -> None:
    places = {"a": tmp_path / "none", "b": Path("x" * 300), "c": Path("a\0b")}
    assert data(places) == dict.fromkeys("abc", ABSENT)


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    before = digest(place)
    os.mkfifo(place / "pipe")
    assert digest(place) == before


READS = """
import sys
from pathlib import Path
read = []
sys.addaudithook(lambda event, args: read.append(args[0]) if event == "open" else None)
from mltrain.provenance.contents import contents_of
place, settled = Path(sys.argv[1]), float(sys.argv[2])
print(contents_of(place, settled_seconds=settled).digest, sum(str(path).startswith(str(place)) for path in read), sep="|")
"""


def reading(place: Path, settled_seconds: float = 0.0) -> tuple[str, int]:
    """Return another process's digest and how many files it opened."""
    done = subprocess.run(
        [sys.executable, "-c", READS, str(place), str(settled_seconds)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found, count = done.stdout.strip().split("|")
    return found, int(count)


def test_what_did_not_change_is_read_once_on_a_machine_whatever_happens_to_the_cache(place: Path, home: Path) -> None:
    first = reading(place)
    assert first[1] == 301
    assert reading(place) == (first[0], 0)
    flip(place / "large.bin", 999_999)
    changed = reading(place)
    assert (changed[0] != first[0], changed[1]) == (True, 1)
    (home / "fingerprints.sqlite").write_bytes(b"not a database" * 1000)
    assert reading(place)[0] == changed[0]
    assert reading(place)[0] == changed[0]
    shutil.rmtree(home)
    home.write_text("a file in the place of the folder")
    assert reading(place)[0] == changed[0]


def test_what_changed_a_moment_ago_is_read_again(place: Path) -> None:
    assert reading(place, 3600.0)[1] == reading(place, 3600.0)[1] == 301


def test_beyond_the_budget_a_sample_says_what_is_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = digest(place)
    monkeypatch.setenv("MLTRAIN_FINGERPRINT_GB", "0.0001")
    before = digest(place)
    assert before.startswith("sample131072:")
    assert "(301 files, 0.000869 GB not read)" in before
    assert "MLTRAIN_FINGERPRINT_GB" in caplog.text
    assert digest(place) == before
    for offset in (0, 999_999):  # begin and end are always in it
        flip(place / "large.bin", offset)
        assert digest(place) != before
        with (place / "large.bin").open("r+b") as opened:
            opened.seek(offset)
            opened.write(b"\0")
        os.utime(place / "large.bin", (OLD, OLD))
    flip(place / "0" / "0.txt", 0)
    assert digest(place) != before
    (place / "0" / "0.txt").write_text("0")
    monkeypatch.delenv("MLTRAIN_FINGERPRINT_GB")
    assert same_data(before, digest(place), place, {}, may_fill=False)  # compared by the rule of then
    assert digest(place) == whole


def test_a_budget_of_nothing_reads_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_FINGERPRINT_GB", "0")
    before = digest(place)
    flip(place / "large.bin", 0)
    assert digest(place) == before
    (place / "large.bin").write_bytes(b"shorter")
    assert digest(place) != before


def test_a_file_that_cannot_be_read_is_reported(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0:
        (place / "large.bin").chmod(0)
    else:  # root reads everything but this
        (place / "mem").symlink_to("/proc/self/mem")
    before = digest(place)
    assert "cannot be read" in caplog.text
    assert digest(place) == before


def test_digests_of_earlier_versions_are_compared_by_their_rule(place: Path) -> None:
    earlier = fingerprint._digest_before_contents(place)
    assert ":" not in earlier
    assert same_data(earlier, digest(place), place, {}, may_fill=False)
    (place / "0" / "0.txt").write_text("other")
    assert not same_data(earlier, digest(place), place, {}, may_fill=False)


def test_the_first_files_of_too_many_are_the_same_ones_each_time(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for name in ("b", "a", "c/d", "c/a"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    assert list(contents_of(place).files) == ["a", "b", "c/a", "c/d"]
