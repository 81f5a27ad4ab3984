"""The one door to the artifacts of a run."""

import errno
import logging
import os
import shutil
import string
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import FileInfo
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store import retry
from mltrain.store.artifacts import Artifacts, Entry
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import validated
from mltrain.store.opening import open_artifacts
from mltrain.store.remote import RemoteArtifacts
from mltrain.store.removal import discard_cached, discard_sent, discard_staged, discard_temporary

NAME = "step-000000001-a01"
HOSTILE = [
    *("", ".", "..", "../x", "x/..", "x/../y", "/x", "//x", "x//y", "x/", "/", "./x", "x/./y", "\\x", "x\\..\\y"),
    *("C:\\x", "C:/x", "x\0y", "x\ny", "x\n", "\x1b[31m", ".hidden", "x/.hidden", "~/x", "-rf", "x/-rf", " x", "x\t"),
    *("%2e%2e/x", "x%2fy", "x%00", "a%2f..%2fb", "file:///etc", "http://x", "x?y", "x*", "x|y", "x;y", "$HOME", "`id`"),
    *("x" * 201, "ä", "１", "x\u202ey", "\ud800", "x\x7f", "<b>", 'x"', "x'"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "artifacts" / "checkpoints" / NAME).mkdir(parents=True)
    (tmp_path / "canary").write_text("precious")
    return tmp_path / "artifacts"


@pytest.fixture(params=["on this machine", "elsewhere"])
def artifacts(request: pytest.FixtureRequest, root: Path) -> Artifacts:
    return (
        LocalArtifacts(root)
        if request.param == "on this machine"
        else RemoteArtifacts(LocalArtifactRepository(str(root)))
    )


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def file_in(folder: Path, name: str = "a.json", content: bytes = b"content") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("path", ["a", "a/b", "checkpoints/step-000000001-a01/model-00001-of-00002.safetensors"])
def test_a_plain_path_stays_as_it_is(path: str) -> None:
    assert validated(path) == path


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(StorageError, match="not a path of an artifact"):
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
    with pytest.raises(DamagedCheckpoint, match="has 5 bytes; at most 4"):
        artifacts.read("a.json", 4)


def test_a_folder_is_not_a_file(artifacts: Artifacts) -> None:
    with pytest.raises((OSError, DamagedCheckpoint)):
        artifacts.read("checkpoints", 100)


def test_links_are_neither_listed_nor_followed(root: Path, tmp_path: Path) -> None:
    local = LocalArtifacts(root)
    (root / "link").symlink_to(tmp_path / "canary")
    (root / "checkpoints" / "step-000000002-a01").symlink_to(tmp_path)
    assert [entry.name for entry in local.entries()] == ["checkpoints"]
    assert [entry.name for entry in local.entries("checkpoints")] == [NAME]
    with pytest.raises(OSError, match="link"):
        local.read("link", 100)


def test_what_vanishes_while_it_is_listed_does_not_hide_the_rest(tmp_path: Path) -> None:
    names = {f"step-{step:09d}-a01" for step in range(100)}
    for name in names:
        (tmp_path / "artifacts" / "checkpoints" / name).mkdir(parents=True)
    stop, removed = threading.Event(), 0

    def prune() -> None:
        nonlocal removed
        while not stop.is_set():
            for number in range(50):
                place = tmp_path / "artifacts" / "checkpoints" / f"step-{number:09d}-a02"
                place.mkdir()
                place.rmdir()
                removed += 1

    thread, listings = threading.Thread(target=prune), 0
    thread.start()
    try:
        while removed < 500 or listings < 100:
            found = {entry.name for entry in LocalArtifacts(tmp_path / "artifacts").entries("checkpoints")}
            assert names - found == set()
            listings += 1
    finally:
        stop.set()
        thread.join()


def test_an_upload_onto_a_link_does_not_write_through_it(root: Path, tmp_path: Path) -> None:
    (root / "a.json").symlink_to(tmp_path / "canary")
    with pytest.raises(StorageError):
        LocalArtifacts(root).upload(file_in(tmp_path / "outside"))
    assert (tmp_path / "canary").read_text() == "precious"


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


def test_the_manifest_goes_first(root: Path) -> None:
    removed: list[str] = []

    class Noting(LocalArtifactRepository):
        def delete_artifacts(self, artifact_path: str | None = None) -> None:
            removed.append(str(artifact_path))
            super().delete_artifacts(artifact_path)

    file_in(root / "checkpoints" / NAME, "manifest.json")
    RemoteArtifacts(Noting(str(root))).remove_checkpoint(NAME)
    assert removed == [f"checkpoints/{NAME}/manifest.json", f"checkpoints/{NAME}"]


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


def test_a_link_or_a_file_called_like_a_checkpoint_is_not_removed(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    file_in(precious, "manifest.json")
    (root / "checkpoints" / "step-000000002-a01").symlink_to(precious)
    (root / "checkpoints" / "step-000000003-a01").write_text("a file")
    before = tree(tmp_path)
    for name in ("step-000000002-a01", "step-000000003-a01"):
        with pytest.raises(StorageError, match="not a folder"):
            LocalArtifacts(root).remove_checkpoint(name)
    assert tree(tmp_path) == before


def test_links_in_a_checkpoint_go_and_what_they_point_at_stays(root: Path, tmp_path: Path) -> None:
    (root / "checkpoints" / NAME / "model.safetensors").symlink_to(tmp_path / "canary")
    (root / "checkpoints" / NAME / "folder").symlink_to(tmp_path)
    LocalArtifacts(root).remove_checkpoint(NAME)
    assert not (root / "checkpoints" / NAME).exists()
    assert (tmp_path / "canary").read_text() == "precious"


def test_what_nobody_put_into_a_checkpoint_is_not_removed_with_it(root: Path) -> None:
    file_in(root / "checkpoints" / NAME / "folder", "theirs")
    with pytest.raises(StorageError, match="could not be removed completely"):
        LocalArtifacts(root).remove_checkpoint(NAME)
    assert (root / "checkpoints" / NAME / "folder" / "theirs").exists()


@pytest.mark.parametrize("name", [NAME, f"{NAME}.0123abcd.tmp"])
def test_a_staged_checkpoint_can_be_discarded(name: str, tmp_path: Path) -> None:
    file_in(tmp_path / name)
    discard_staged(tmp_path / name)
    discard_staged(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["spool", f"{NAME}.tmp", f"{NAME}.0123ABCD.tmp", f"{NAME}.0123abcd.tmp.x"])
def test_nothing_else_can_be_discarded_as_staged(name: str, tmp_path: Path) -> None:
    file_in(tmp_path / name)
    with pytest.raises(StorageError, match="nothing was removed"):
        discard_staged(tmp_path / name)
    assert (tmp_path / name / "a.json").exists()


def test_only_what_is_in_an_outbox_is_discarded_as_sent(tmp_path: Path) -> None:
    sent, other = file_in(tmp_path / "outbox"), file_in(tmp_path / "inbox")
    discard_sent(sent)
    discard_sent(sent)
    with pytest.raises(StorageError, match="not in an outbox"):
        discard_sent(other)
    with pytest.raises(StorageError, match="not in an outbox"):
        discard_sent(tmp_path / "outbox" / ".." / "inbox" / "a.json")
    beside = file_in(tmp_path, "journal.sqlite")
    with pytest.raises(StorageError, match="not in an outbox"):
        discard_sent(tmp_path / "outbox" / ".." / "journal.sqlite")
    assert beside.exists()
    assert (sent.exists(), other.exists()) == (False, True)


def test_only_a_temporary_file_is_discarded_as_temporary(tmp_path: Path) -> None:
    temporary, other = file_in(tmp_path, ".a.json.0123abcd.tmp"), file_in(tmp_path, "a.json")
    discard_temporary(temporary)
    with pytest.raises(StorageError, match="not a temporary file"):
        discard_temporary(other)
    assert (temporary.exists(), other.exists()) == (False, True)


def aged(file: Path, seconds: float) -> Path:
    then = file.stat().st_mtime - seconds
    os.utime(file, (then, then))
    return file


def test_litter_of_broken_uploads_is_found_and_what_is_dead_is_removed_and_nothing_else(
    root: Path, tmp_path: Path
) -> None:
    local = LocalArtifacts(root)
    aged(file_in(root / "checkpoints", ".artifact.uploading.abc"), 3700)
    file_in(root, ".artifact.uploading.fresh")  # perhaps another tool is writing it
    file_in(root / "checkpoints", "kept")
    (root / ".artifact.uploading.link").symlink_to(tmp_path / "canary")
    aged(file_in(tmp_path / "another run", ".artifact.uploading.abc"), 3700)
    (root / "linked").symlink_to(tmp_path / "another run")
    (root / ".artifact.uploading.folder").mkdir()
    before = tree(tmp_path)
    assert local.litter() == [".artifact.uploading.fresh", "checkpoints/.artifact.uploading.abc"]
    assert local.litter(3600) == ["checkpoints/.artifact.uploading.abc"]
    assert local.remove_litter() == 1
    assert before.keys() - tree(tmp_path).keys() == {"artifacts/checkpoints/.artifact.uploading.abc"}
    assert local.litter() == [".artifact.uploading.fresh"]


def test_what_somebody_began_to_stage_beside_the_artifacts_is_litter_too(root: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".mltrain-staging"
    staging.mkdir()
    file_in(staging / f"{NAME}.0123abcd.tmp", "model.safetensors")
    file_in(staging / "notes", "model.safetensors")
    (staging / "step-000000002-a01.0123abcd.tmp").symlink_to(tmp_path)
    local = LocalArtifacts(root)
    assert local.litter() == [f"../.mltrain-staging/{NAME}.0123abcd.tmp"]
    assert local.remove_litter() == 1
    assert local.litter() == []
    assert sorted(path.name for path in staging.iterdir()) == ["notes", "step-000000002-a01.0123abcd.tmp"]


def test_checkpoints_behind_a_link_are_not_removed(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "another run" / "checkpoints"
    shutil.move(root / "checkpoints", tmp_path / "here")
    other.mkdir(parents=True)
    file_in(other / NAME, "manifest.json")
    (root / "checkpoints").symlink_to(other)
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="nothing was removed"):
        LocalArtifacts(root).remove_checkpoint(NAME)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("deaf_to", ["manifest.json", NAME])
def test_a_store_that_says_it_removed_and_did_not_is_found_out(deaf_to: str, root: Path) -> None:
    class Deaf(LocalArtifactRepository):
        def delete_artifacts(self, artifact_path: str | None = None) -> None:
            if not str(artifact_path).endswith(deaf_to):
                super().delete_artifacts(artifact_path)

    for name in ("manifest.json", "model.safetensors"):
        file_in(root / "checkpoints" / NAME, name)
    with pytest.raises(StorageError, match="is deleting permitted"):
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


def test_artifacts_on_this_machine_are_reached_directly(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "a b#c%20d"), (tmp_path / "a b#c%20d").as_uri()):
        assert open_artifacts(uri, "sqlite://").local_root == tmp_path / "a b#c%20d"


def test_artifacts_elsewhere_are_reached_through_mlflow() -> None:
    remote = open_artifacts("mlflow-artifacts:/0/run/artifacts", "http://127.0.0.1:1")
    assert isinstance(remote, RemoteArtifacts)
    assert remote.local_root is None


class Faulty(LocalArtifactRepository):
    """MLflow's repository of a folder, which meets a list of errors before it answers."""

    def __init__(self, folder: Path, errors: list[Exception]) -> None:
        super().__init__(str(folder))
        self.errors = errors
        self.calls = 0

    def list_artifacts(self, path: str | None = None) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return super().list_artifacts(path)


def http(status: int) -> Exception:
    import requests

    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    "error", [ConnectionError("reset"), TimeoutError(), http(500), http(503), http(429), http(408)]
)
def test_what_may_pass_is_tried_again(error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FullJitter", lambda **_: lambda state: 0)
    repository = Faulty(root, [error, error, error])
    assert [entry.name for entry in RemoteArtifacts(repository).entries()] == ["checkpoints"]
    assert repository.calls == 4


class Receiving(LocalArtifactRepository):  # type: ignore[misc] # MLflow has no types
    """A store that notes where a file is received, and may be larger than it is, or meet a full disk there."""

    def __init__(self, root: Path, size: int | None = None, error: Exception | None = None) -> None:
        super().__init__(str(root))
        (root / "file").write_bytes(b"content")
        self.places: list[Path] = []
        self._size = size
        self._error = error

    def list_artifacts(self, path: str | None = None) -> Any:
        return [FileInfo(info.path, info.is_dir, self._size or info.file_size) for info in super().list_artifacts(path)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self.places.append(Path(local_path))
        if self._error is not None:
            raise self._error
        super()._download_file(remote_file_path, local_path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_file_is_received_below_the_home_and_leaves_nothing_there(root: Path, home: Path) -> None:
    repository = Receiving(root)
    assert RemoteArtifacts(repository).read("file", 100) == b"content"
    (place,) = repository.places
    assert place.is_relative_to(home)
    assert tree(home / "received") == {}


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("the download failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), wrapped(OSError(errno.EROFS, "Read-only"))])
def test_a_full_disk_is_named_and_not_taken_for_the_store(error: Exception, root: Path, home: Path) -> None:
    repository = Receiving(root, error=error)
    with pytest.raises(StorageError, match="MLTRAIN_HOME") as refused:
        RemoteArtifacts(repository).read("file", 100)
    assert str(home / "received") in str(refused.value)
    assert "store" not in str(refused.value)
    assert len(repository.places) == 1


def test_what_no_disk_has_room_for_is_refused_before_it_is_received(root: Path, home: Path) -> None:
    repository = Receiving(root, size=2**60)
    with pytest.raises(StorageError, match=f"{2**60} bytes of room in {home}"):
        RemoteArtifacts(repository).read("file", 2**61)
    assert repository.places == []


def test_a_home_that_cannot_be_made_is_replaced_by_the_temporary_folder(root: Path, home: Path) -> None:
    home.write_text("a file")
    assert RemoteArtifacts(Receiving(root)).read("file", 100) == b"content"


def test_what_killed_processes_had_received_is_removed_once_it_is_old(root: Path, home: Path) -> None:
    for name, age in {"mltrain-old": 7200.0, "mltrain-new": 60.0}.items():
        (home / "received" / name).mkdir(parents=True)
        (home / "received" / name / "part").write_text("half")
        for path in (home / "received" / name / "part", home / "received" / name):
            os.utime(path, (time.time() - age,) * 2)
    RemoteArtifacts(Receiving(root)).read("file", 100)
    assert sorted(tree(home / "received")) == ["mltrain-new", "mltrain-new/part"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_what_will_not_pass_is_not_tried_again(status: int, root: Path) -> None:
    repository = Faulty(root, [http(status)])
    with pytest.raises(StorageError, match=str(status)):
        RemoteArtifacts(repository).entries()
    assert repository.calls == 1


def denied() -> list[Exception]:
    """How 403 arrives: from MLflow's listing of a bucket, from boto3's upload, and from a store that cannot do a thing."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    answer = ClientError(
        {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "ListObjects"
    )
    hidden = S3UploadFailedError("Failed to upload: AccessDenied")
    hidden.__context__ = answer
    return [answer, hidden, MlflowException("no", error_code=PERMISSION_DENIED), NotImplementedError()]


@pytest.mark.parametrize("number", range(4))
def test_a_refusal_is_recognised_wherever_it_is_hidden(number: int, root: Path) -> None:
    repository = Faulty(root, [denied()[number]])
    with pytest.raises(StorageError):
        RemoteArtifacts(repository).entries()
    assert repository.calls == 1


def test_where_unfinished_uploads_may_not_be_listed_all_else_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import boto3
    from botocore.stub import Stubber

    from mltrain.store.remote import BucketArtifacts

    client = boto3.client("s3", aws_access_key_id="x", aws_secret_access_key="y", region_name="us-east-1")
    stubber = Stubber(client)
    for _ in range(2):
        stubber.add_client_error("list_multipart_uploads", "AccessDenied", http_status_code=403)
    artifacts = open_artifacts("s3://bucket/0/run/artifacts", "sqlite://")
    assert isinstance(artifacts, BucketArtifacts)
    monkeypatch.setattr(artifacts._repository, "_get_s3_client", lambda: client)
    with stubber, caplog.at_level(logging.WARNING):
        assert (artifacts.litter(), artifacts.remove_litter()) == ([], 0)
    stubber.assert_no_pending_responses()
    assert "AccessDenied" in caplog.text


def test_a_store_that_stays_away_is_given_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.05)
    repository = Faulty(root, [ConnectionError("nobody there")] * 1000)
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match="nobody there"):
        RemoteArtifacts(repository).entries()
    assert 1 < repository.calls < 1000


def test_strange_names_of_a_remote_listing_are_left_out(root: Path) -> None:
    from mlflow.entities import FileInfo

    class Strange(LocalArtifactRepository):
        def list_artifacts(self, path: str | None = None) -> Any:
            return [FileInfo(f"{path}/{name}", False, 1) for name in ("fine", "..", "a\nb", ".hidden", "x%2e")]

    assert [entry.name for entry in RemoteArtifacts(Strange(str(root))).entries("folder")] == ["fine"]


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


def test_links_in_an_output_go_and_what_they_point_at_stays(root: Path, tmp_path: Path) -> None:
    output = root / "output" / "a01"
    file_in(output, "output.json")
    (output / "file").symlink_to(tmp_path / "canary")
    (output / "folder").symlink_to(tmp_path)
    LocalArtifacts(root).remove_output("a01")
    assert not output.exists()
    assert (tmp_path / "canary").read_text() == "precious"


def test_a_link_called_like_an_output_is_not_removed(root: Path, tmp_path: Path) -> None:
    file_in(tmp_path / "precious", "output.json")
    (root / "output").mkdir()
    (root / "output" / "a01").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="not a folder"):
        LocalArtifacts(root).remove_output("a01")
    assert (tmp_path / "precious" / "output.json").exists()


def test_only_a_file_in_a_copy_of_an_output_can_be_discarded(tmp_path: Path) -> None:
    copy = tmp_path / ("0a" * 32)
    file_in(copy / "parts", "stray")
    precious = file_in(tmp_path / "precious", "file")
    (copy / "link").symlink_to(precious.parent)
    for folder, file in (
        (copy, precious),
        (copy, copy),
        (copy, copy / ".." / "precious" / "file"),
        (copy, copy / "link" / "file"),
        (precious.parent, precious),
    ):
        with pytest.raises(StorageError, match="was not removed"):
            discard_cached(folder, file)
    discard_cached(copy, copy / "parts" / "stray")
    discard_cached(copy, copy / "link")
    assert [path.name for path in copy.rglob("*")] == ["parts"]
    assert precious.exists()
