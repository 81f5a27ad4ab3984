"""The one door to the artifacts of a run."""

import os
import shutil
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import Artifacts, DeferredArtifacts, Entry, validated
from mltrain.store.local import LocalArtifacts
from mltrain.store.remote import RemoteArtifacts
from tests.support.folders import HOSTILE, NAME, file_in, tree


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_no_door_opens_for_a_hostile_path(path: str, artifacts: Artifacts, root: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with pytest.raises(StorageError):
        artifacts.read(path, 100)
    with pytest.raises(StorageError):
        artifacts.remove_checkpoint(path)
    if path:
        with pytest.raises(StorageError):
            artifacts.entries(path)
        with pytest.raises(StorageError):
            artifacts.upload(tmp_path / "canary", path)
    assert tree(tmp_path) == before


def test_what_is_uploaded_can_be_listed_and_read(artifacts: Artifacts, tmp_path: Path) -> None:
    assert artifacts.entries("no/such/folder") == []
    artifacts.upload(file_in(tmp_path / "outside"))
    artifacts.upload(file_in(tmp_path / "outside", "b c.json", b"more"), "some/folder")
    assert Entry("a.json", False, 7) in artifacts.entries()
    assert Entry("some", True, None) in artifacts.entries()
    assert artifacts.entries("some/folder") == [Entry("b c.json", False, 4)]
    assert artifacts.read("some/folder/b c.json", 4) == b"more"


def test_an_upload_replaces_what_was_there(artifacts: Artifacts, tmp_path: Path) -> None:
    for content in (b"a long content", b"short"):
        artifacts.upload(file_in(tmp_path / "outside", content=content))
        assert artifacts.read("a.json", 100) == content


def test_a_file_with_a_hostile_name_is_not_uploaded(artifacts: Artifacts, root: Path, tmp_path: Path) -> None:
    before = tree(root)
    for name in (".hidden", "-rf", "a\nb", "%2e%2e", "ä"):
        with pytest.raises(StorageError):
            artifacts.upload(file_in(tmp_path / "outside", name))
    assert tree(root) == before


@pytest.mark.parametrize("path", ["missing", "missing/file", "checkpoints/missing", "a.json/b"])
def test_what_is_not_there_is_not_found(path: str, artifacts: Artifacts, root: Path) -> None:
    file_in(root)
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        artifacts.read(path, 100)


def test_more_than_was_expected_is_not_read(artifacts: Artifacts, root: Path) -> None:
    file_in(root, content=b"12345")
    assert artifacts.read("a.json", 5) == b"12345"
    with pytest.raises(DamagedCheckpoint, match=r"has 5 bytes\. Expected at most 4"):
        artifacts.read("a.json", 4)


def test_a_folder_is_not_a_file(artifacts: Artifacts) -> None:
    with pytest.raises((OSError, DamagedCheckpoint)):
        artifacts.read("checkpoints", 100)


def test_a_checkpoint_is_removed_with_all_its_files(artifacts: Artifacts, root: Path) -> None:
    place = root / "checkpoints" / NAME
    for name in ("manifest.json", "model.safetensors", "strange name", ".hidden"):
        (place / name).write_text("x")
    artifacts.remove_checkpoint(NAME)
    assert not place.exists()
    assert (root / "checkpoints").exists()


def test_a_checkpoint_that_is_gone_already_is_no_error(artifacts: Artifacts) -> None:
    artifacts.remove_checkpoint(NAME)
    artifacts.remove_checkpoint(NAME)
    artifacts.remove_checkpoint("step-999999999-a99")


NOT_CHECKPOINTS = [
    *("", ".", "..", "../../canary", f"../../other/checkpoints/{NAME}", f"/{NAME}", f"{NAME}/..", f"{NAME}/../../.."),
    *(
        f"{NAME}.0123abcd.tmp",
        f"{NAME}\n",
        f"{NAME}\0",
        f" {NAME}",
        "step-1-a1",
        "step-000000001-a1",
        "checkpoints",
        "*",
    ),
    *("step-०००००००००-a01", f"x/{NAME}", f"./{NAME}"),
]


@pytest.mark.parametrize("name", NOT_CHECKPOINTS, ids=repr)
def test_only_what_is_called_like_a_checkpoint_can_be_removed(
    name: str, artifacts: Artifacts, root: Path, tmp_path: Path
) -> None:
    file_in(root / "checkpoints" / NAME, "manifest.json")
    shutil.copytree(root / "checkpoints", tmp_path / "other" / "checkpoints")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="nothing was removed"):
        artifacts.remove_checkpoint(name)
    assert tree(tmp_path) == before


def test_an_absolute_name_removes_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    victim = tmp_path / "other" / NAME
    victim.mkdir(parents=True)
    with pytest.raises(StorageError):
        artifacts.remove_checkpoint(str(victim))
    assert victim.exists()


@pytest.mark.parametrize("deaf_to", ["manifest.json", NAME])
def test_a_store_that_says_it_removed_and_did_not_is_found_out(deaf_to: str, root: Path) -> None:
    class Deaf(LocalArtifactRepository):
        def delete_artifacts(self, artifact_path: str | None = None) -> None:
            if not str(artifact_path).endswith(deaf_to):
                super().delete_artifacts(artifact_path)

    for name in ("manifest.json", "model.safetensors"):
        file_in(root / "checkpoints" / NAME, name)
    with pytest.raises(StorageError, match="is deletion permitted"):
        RemoteArtifacts(Deaf(str(root))).remove_checkpoint(NAME)
    left = {path.name for path in (root / "checkpoints" / NAME).iterdir()}
    assert left in ({"manifest.json", "model.safetensors"}, {"model.safetensors"}), "a manifest only with its data"


MODEL = f"m-{'0123456789abcdef' * 2}"


@pytest.mark.parametrize("kind", ["on this machine", "elsewhere"])
def test_the_files_of_a_logged_model_are_removed_and_nothing_beside(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "models" / MODEL / "artifacts"
    (place / "data").mkdir(parents=True)
    file_in(place / "data")
    file_in(place)
    (place / "data" / "link").symlink_to(file_in(tmp_path / "canaries").parent)
    file_in(tmp_path / "models" / MODEL.replace("0", "1"))
    opened = (
        LocalArtifacts(place) if kind == "on this machine" else RemoteArtifacts(LocalArtifactRepository(str(place)))
    )
    before = tree(tmp_path)
    opened.remove_model(MODEL)
    opened.remove_model(MODEL)
    gone = before.keys() - tree(tmp_path).keys()
    assert gone >= {f"models/{MODEL}/artifacts/a.json", f"models/{MODEL}/artifacts/data/a.json"}
    assert all(path.startswith(f"models/{MODEL}/artifacts") for path in gone)


@pytest.mark.parametrize(
    ("place", "model"),
    [
        ("0/run/artifacts", MODEL),
        (f"models/{MODEL}", MODEL),
        (f"models/{MODEL}/artifacts", MODEL.replace("0", "1")),
        (f"models/{MODEL}/artifacts/data", MODEL),
        ("models/x/artifacts", "x"),
        ("models/../artifacts", ".."),
    ],
)
def test_nothing_else_can_be_removed_as_a_model(place: str, model: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    file_in(tmp_path / place)
    for opened in (LocalArtifacts(tmp_path / place), RemoteArtifacts(LocalArtifactRepository(str(tmp_path / place)))):
        with pytest.raises(StorageError, match="nothing was removed"):
            opened.remove_model(model)
    assert (tmp_path / place / "a.json").exists()


def test_an_output_is_removed_with_its_folders_and_nothing_beside_it(artifacts: Artifacts, root: Path) -> None:
    for name in ("a01/parts/deep/file", "a01/output.json", "a02/output.json", "a010/x"):
        file_in((root / "output" / name).parent, Path(name).name)
    artifacts.remove_output("a01")
    artifacts.remove_output("a01")
    assert sorted(path.name for path in (root / "output").iterdir()) == ["a010", "a02"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a1", "a01/..", "../a01", "/a01", "a01\n", "A01", "a0000001", "output", "*"]
)
def test_only_what_is_called_like_an_output_can_be_removed(name: str, artifacts: Artifacts, root: Path) -> None:
    file_in(root / "output" / "a01", "output.json")
    before = tree(root)
    with pytest.raises(StorageError, match="nothing was removed"):
        artifacts.remove_output(name)
    assert tree(root) == before


def test_before_the_run_exists_nothing_is_there_and_nothing_is_taken(tmp_path: Path) -> None:
    artifacts = DeferredArtifacts()
    assert artifacts.entries() == []
    assert artifacts.local_root is None
    with pytest.raises(FileNotFoundError):
        artifacts.read("a.json", 10)
    with pytest.raises(StorageError, match="has not been created yet"):
        artifacts.upload(file_in(tmp_path))


def test_once_it_exists_everything_is_passed_on(tmp_path: Path) -> None:
    artifacts = DeferredArtifacts()
    artifacts.target = LocalArtifacts(tmp_path / "store")
    artifacts.upload(file_in(tmp_path), "folder")
    assert [entry.name for entry in artifacts.entries("folder")] == ["a.json"]
    assert artifacts.read("folder/a.json", 10) == b"content"


@pytest.mark.parametrize("path", ["a", "a/b", "checkpoints/step-000000001-a01/model-00001-of-00002.safetensors"])
def test_a_plain_path_stays_as_it_is(path: str) -> None:
    assert validated(path) == path


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(StorageError, match="is not an artifact path"):
        validated(path)


@settings(max_examples=300)
@given(st.text() | st.text(string.ascii_letters + "./\\%~ \0", max_size=12))
def test_what_is_accepted_stays_below_its_root(path: str) -> None:
    try:
        validated(path)
    except StorageError:
        return
    place = os.path.normpath(os.path.join("/root/of/all", path))  # noqa: PTH118 - what a file system makes of it
    assert place == f"/root/of/all/{path}"
    assert path.isascii()
    assert path.isprintable()
