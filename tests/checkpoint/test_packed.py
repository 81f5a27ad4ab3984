"""A checkpoint as one file: what is written comes back, and what is cut short or changed is damaged."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.packed import PackedStaging, is_packed, member_names, read_member
from mltrain.errors import DamagedCheckpoint, StorageError
from tests.support.runs import manifest_of

CONTENT = {"model.safetensors": b"weights" * 100, "state.json": b"{}", "empty.csv": b""}


def packed(folder: Path) -> Path:
    with PackedStaging(folder, CheckpointId(attempt=1, step=3)) as staging:
        for name, content in CONTENT.items():
            staging.write(name, [content[:5], content[5:]])
        complete = manifest_of(3).model_copy(update={"files": dict(staging.files)})
        staging.commit(complete, folder / "3.pth")
    return folder / "3.pth"


def test_what_was_written_comes_back_and_unzip_reads_it(tmp_path: Path) -> None:
    file = packed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["3.pth"]
    assert {name: read_member(file, name, 10**6) for name in CONTENT} == CONTENT
    assert set(member_names(file)) == {*CONTENT, "manifest.json"}
    manifest = Manifest.from_json(bytes(read_member(file, "manifest.json", 10**6)))
    assert {name: entry.size for name, entry in manifest.files.items()} == {n: len(c) for n, c in CONTENT.items()}
    assert zipfile.ZipFile(file).testzip() is None
    assert is_packed(file)


def test_a_member_that_is_missing_or_too_large_is_not_read(tmp_path: Path) -> None:
    file = packed(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_member(file, "other.json", 100)
    with pytest.raises(FileNotFoundError):
        read_member(tmp_path / "4.pth", "state.json", 100)
    with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors in 3\.pth has 700 bytes\. Expected at most 10"):
        read_member(file, "model.safetensors", 10)


def test_a_file_that_is_cut_short_anywhere_is_damaged(tmp_path: Path) -> None:
    file = packed(tmp_path)
    content = file.read_bytes()
    for size in range(0, len(content), 23):
        file.write_bytes(content[:size])
        with pytest.raises(DamagedCheckpoint, match=r"not a complete checkpoint|truncated"):
            read_member(file, "state.json", 10**6)


def test_changed_bytes_never_come_back_as_other_than_damage_or_the_same_length(tmp_path: Path) -> None:
    file = packed(tmp_path)
    content = file.read_bytes()
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        file.write_bytes(changed)
        try:
            read_member(file, "state.json", 10**6)
        except (DamagedCheckpoint, FileNotFoundError):
            continue  # any other error fails the test; a digest in the manifest finds what is left


def test_a_staging_that_is_left_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PackedStaging(tmp_path, CheckpointId(attempt=1, step=3)) as staging:
        staging.write("state.json", [b"{}"])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is a device of Linux")
def test_a_disk_that_is_full_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from tests.checkpoint.test_packed import packed, CONTENT\n"
        "from mltrain.errors import StorageError\n"
        "CONTENT['model.safetensors'] = bytes(100_000)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: packed(Path(sys.argv[1]))\n"
        "except StorageError as error: print('refused', [*Path(sys.argv[1]).iterdir()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "refused []\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", False),
        (b"\x80\x02}q\x00.", False),
        (bytes(100), None),
        (b"", None),
    ],
)
def test_files_of_others_are_told_from_damaged_ones(content: bytes, expected: bool | None, tmp_path: Path) -> None:
    (tmp_path / "best_model.pth").write_bytes(content)
    assert is_packed(tmp_path / "best_model.pth") is expected


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written"):
        packed(tmp_path / "none")
