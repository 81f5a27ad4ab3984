"""The one door to the artifacts of a run: every path is validated here, and nothing else in mltrain deletes.

MLflow validates nothing when it deletes: an empty path removes all artifacts of the run, and ``../`` reaches other runs.
So deletion takes the name of a checkpoint, matched by its strict pattern, and removes the manifest before the data: what
a crash leaves behind is not a checkpoint any more.
"""

import importlib.util
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import platformdirs

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.redaction import redacted, redacted_uri
from mltrain.tracking.elsewhere import UnusableArtifacts, refuse_elsewhere
from mltrain.tracking.persistence import full_disk, named_errors, persistently, status_of

if TYPE_CHECKING:
    from mltrain.tracking.server import Server

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
OUTPUTS = "output"
OUTPUT_RECORD = "output.json"
"""What a stage of a pipeline made: ``output/a<attempt>/``, of which this file is written last and removed first."""
_CHECKPOINT = re.compile(r"step-\d{9}-a\d{2,6}", re.ASCII)
_STAGED = re.compile(r"step-\d{9}-a\d{2,6}(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
_OUTPUT = re.compile(r"a\d{2,6}", re.ASCII)
_CACHED = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@,=()#~-]{0,199}", re.ASCII)
_MODEL = re.compile(r"m-[0-9a-f]{32}", re.ASCII)
_UPLOADING = ".artifact.uploading."
_PARALLEL_FILES = 4

STAGING = ".mltrain-staging"
"""The folder beside the artifacts in which checkpoints are staged where these are on this machine."""

DEAD_SECONDS = 3600.0
"""A temporary file of a run that nobody writes to, and that was not written to for so long, belongs to nobody."""


@dataclass(frozen=True)
class Entry:
    """Something in a folder of artifacts; ``size`` in bytes, none for a folder."""

    name: str
    is_dir: bool
    size: int | None


class Artifacts(Protocol):
    """The artifacts of one run."""

    local_root: Path | None
    """Where they are on this machine, if they are."""

    def entries(self, folder: str = "") -> list[Entry]:
        """Return what a folder holds; a missing folder holds nothing. Links and strange names are left out."""
        ...

    def upload(self, file: Path, folder: str = "") -> None:
        """Put a file into a folder under its own name, replacing it, and check its size there."""
        ...

    def upload_all(self, files: Sequence[Path], folder: str) -> None:
        """Put files into a folder, in any order, and when all are there check all their sizes."""
        ...

    def read(self, path: str, most: int) -> bytearray:
        """Return the content of a file of at most ``most`` bytes.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedCheckpoint: it is larger.
        """
        ...

    def remove_checkpoint(self, name: str) -> None:
        """Remove the checkpoint of this directory name, its manifest first. One that is gone already is no error."""
        ...

    def remove_model(self, model_id: str) -> None:
        """Remove all files, which have to be those of this LoggedModel.

        Raises:
            StorageError: this is not where a LoggedModel's files are, or the store does not allow it.
        """
        ...

    def remove_output(self, name: str) -> None:
        """Remove what an attempt of a stage made, its record first. What is gone already is no error."""
        ...

    def litter(self, untouched: float = 0.0) -> list[str]:
        """Return what interrupted writers left and nobody has written to for so many seconds.

        Temporary files of MLflow's uploads, checkpoints that somebody began to stage, unfinished uploads to a bucket.
        """
        ...

    def remove_litter(self, untouched: float = DEAD_SECONDS) -> int:
        """Remove these, and return how many there were. Only for a run that nobody writes to."""
        ...


T = TypeVar("T")
R = TypeVar("R")


def side_by_side(job: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do something with each of some items, a few at a time, and return the results in their order."""
    if len(items) < 2:
        return [job(item) for item in items]
    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="mltrain-files") as pool:
        try:
            results = pool.map(job, items)
        except RuntimeError:  # the interpreter is ending, and starts no more threads: this one is waited for
            return [job(item) for item in items]
        return list(results)


def validated(path: str) -> str:
    """Return a relative artifact path unchanged, or refuse it.

    Raises:
        StorageError: it is empty, absolute, has ``..``, control or other unusual characters in a component.
    """
    if not path or not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        raise StorageError(f"{path!r:.200} is not a path of an artifact: plain names joined by / are expected.")
    return path


def _output_name(name: str) -> str:
    if not _OUTPUT.fullmatch(name):
        raise StorageError(f"{name!r:.80} is not the name of an output; nothing was removed.")
    return name


def _without_surprises(path: str, flags: int) -> int:
    """Open a file, but neither follow a link nor wait at a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def refuse_unwritable(folder: Path, remedy: str) -> None:
    """Refuse a folder that cannot be made or written to, without making it.

    Raises:
        StorageError: the folder, or the nearest one above it that exists, is no folder or is not writable.
    """
    place = next(above for above in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(above))
    if not place.is_dir():
        raise StorageError(f"{folder} cannot be written: {place} is not a folder. {remedy}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} cannot be written: this user has no right to write to {place}. {remedy}")


def discard_staged(folder: Path) -> None:
    """Remove a staged checkpoint, complete or not: a flat folder with a checkpoint's name, its manifest first."""
    _remove_flat(folder, _STAGED)


OUTBOX = "outbox"
"""The name of the folder in which pictures wait for their upload."""


def is_litter(folder: Path) -> bool:
    """Whether this is a checkpoint that somebody began to stage."""
    return (
        _STAGED.fullmatch(folder.name) is not None and folder.suffix == ".tmp" and stat.S_ISDIR(folder.lstat().st_mode)
    )


def discard_temporary(file: Path) -> None:
    """Remove a file that was about to replace another one, and nothing else."""
    if not _TEMPORARY.fullmatch(file.name):
        raise StorageError(f"{file} is not a temporary file; it was not removed.")
    file.unlink(missing_ok=True)


def discard_sent(file: Path) -> None:
    """Remove a picture that has been uploaded, from the outbox and from nowhere else."""
    if OUTBOX not in (file.parent.name, file.parent.parent.name) or ".." in file.parts:
        raise StorageError(f"{file} is not in an outbox; it was not removed.")
    file.unlink(missing_ok=True)


def discard_cached(folder: Path, file: Path) -> None:
    """Remove a file that does not belong to a cached output: one below a folder that is named by a SHA-256."""
    inside = file.relative_to(folder).parts if file.is_relative_to(folder) else ()
    if not _CACHED.fullmatch(folder.name) or not inside or ".." in inside:
        raise StorageError(f"{file} is not in a cached output; it was not removed.")
    if any(parent.is_symlink() for parent in file.parents if parent.is_relative_to(folder)):
        raise StorageError(f"{file} is reached through a link; it was not removed.")
    file.unlink(missing_ok=True)


def _remove_tree(folder: Path) -> None:
    """Remove a folder of plain files and folders; a link is removed itself, and never what it points at."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise StorageError(f"{folder} is not a folder; nothing was removed.")
        (folder / OUTPUT_RECORD).unlink(missing_ok=True)
        for current, folders, names in os.walk(folder, topdown=False, followlinks=False):
            for name in names:
                (Path(current) / name).unlink(missing_ok=True)
            for name in folders:
                path = Path(current) / name
                if path.is_symlink():
                    path.unlink()
                else:
                    path.rmdir()
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder.name} could not be removed completely: {error}") from error


def _remove_flat(folder: Path, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(folder.name):
        raise StorageError(f"{folder.name!r} is not the name of a checkpoint; nothing was removed.")
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise StorageError(f"{folder} is not a folder; nothing was removed.")
        (folder / MANIFEST).unlink(missing_ok=True)
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    Path(entry.path).unlink(missing_ok=True)
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder.name} could not be removed completely: {error}") from error


class LocalArtifacts:
    """Artifacts in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.local_root: Path | None = root
        self._root = root

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        place, found = self._root / validated(folder) if folder else self._root, []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if _COMPONENT.fullmatch(entry.name):
                        # One that vanishes meanwhile, such as a pruned checkpoint, must not hide the others.
                        with suppress(FileNotFoundError):
                            found.append((entry.name, entry.stat(follow_symlinks=False)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"The artifacts in {place} cannot be listed: {error.strerror}.") from error
        return [
            Entry(name, stat.S_ISDIR(info.st_mode), None if stat.S_ISDIR(info.st_mode) else info.st_size)
            for name, info in found
            if stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)
        ]

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`; the file appears under its name only when it is complete."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        validated(file.name)
        with named_errors():
            LocalArtifactRepository(str(self._root)).log_artifact(str(file), validated(folder) if folder else None)

    def upload_all(self, files: Sequence[Path], folder: str) -> None:
        """See :class:`Artifacts`."""
        for file in files:
            self.upload(file, folder)

    def read(self, path: str, most: int) -> bytearray:
        """See :class:`Artifacts`."""
        with open(self._root / validated(path), "rb", opener=_without_surprises) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise DamagedCheckpoint(f"{path} has {size} bytes; at most {most} were expected.")
            content = bytearray(size)
            read = file.readinto(content)
            if read != size or file.read(1):
                raise DamagedCheckpoint(f"{path} changed while it was read.")
            return content

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        if not _CHECKPOINT.fullmatch(name):
            raise StorageError(f"{name!r} is not the name of a checkpoint; nothing was removed.")
        checkpoints = self._root / CHECKPOINTS
        if checkpoints.is_symlink():
            raise StorageError(f"{checkpoints} is a link, perhaps to another run's; nothing was removed.")
        _remove_flat(checkpoints / name, _CHECKPOINT)

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`."""
        _output_name(name)
        made = self._root / OUTPUTS
        if made.is_symlink():
            raise StorageError(f"{made} is a link, perhaps to another run's; nothing was removed.")
        _remove_tree(made / name)

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        _refuse_unless_model(self._root.as_posix(), model_id)
        try:
            shutil.rmtree(self._root)  # does not follow links
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{self._root} could not be removed completely: {error}") from error

    def litter(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`."""
        files = [file.relative_to(self._root).as_posix() for file in self._uploading(untouched)]
        return files + [f"../{STAGING}/{folder.name}" for folder in self._half_staged()]

    def remove_litter(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        files, folders = self._uploading(untouched), self._half_staged()
        for file in files:
            file.unlink(missing_ok=True)
        for folder in folders:
            discard_staged(folder)
        return len(files) + len(folders)

    def _uploading(self, untouched: float) -> list[Path]:
        found = []
        for folder, _, names in os.walk(self._root):  # does not follow links
            for file in (Path(folder, name) for name in names if name.startswith(_UPLOADING)):
                try:
                    status = file.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime >= untouched:
                    found.append(file)
        return sorted(found)

    def _half_staged(self) -> list[Path]:
        staging = self._root.parent / STAGING
        if not staging.is_dir() or staging.is_symlink():
            return []
        return sorted(folder for folder in staging.iterdir() if is_litter(folder))


_RECEIVED = "received"


def state_folder() -> Path:
    """Return the folder on this host below which mltrain keeps everything: ``MLTRAIN_HOME``, or the user's state folder."""
    base = os.environ.get("MLTRAIN_HOME") or platformdirs.user_state_dir("mltrain", appauthor=False)
    return Path(base).expanduser()


@contextmanager
def _receiving(path: str, size: int) -> Iterator[Path]:
    """Make a folder for a file to be received into, where its disk has room; remove it afterwards.

    It is below MLTRAIN_HOME, because the temporary folder is often memory, and only otherwise there.
    """
    places = [state_folder() / _RECEIVED, Path(tempfile.gettempdir())]
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(place).free >= size and os.access(place, os.W_OK):
                break
    else:
        raise _no_room(path, size, places, "no room")
    _discard_received(places[0])
    with tempfile.TemporaryDirectory(prefix="mltrain-", dir=place) as temporary:
        yield Path(temporary)


def _no_room(path: str, size: int, places: Sequence[Path], why: str | None) -> StorageError:
    return StorageError(
        f"{path} cannot be received on this machine: {why}. Expected {size} bytes of room in {' or '.join(map(str, places))}. "
        "Try: set MLTRAIN_HOME to a folder on a disk that has it"
    )


def _discard_received(folder: Path) -> None:
    """Remove what processes that were killed while they received a file have left, once nobody has written to it for long."""
    with suppress(OSError):
        for left in folder.glob("mltrain-*"):
            newest = max(path.lstat().st_mtime for path in (left, *left.iterdir()))
            if not left.is_symlink() and time.time() - newest > DEAD_SECONDS:
                shutil.rmtree(left)  # does not follow links


class RemoteArtifacts:
    """Artifacts behind one of MLflow's artifact repositories: a tracking server, S3 and the like."""

    def __init__(self, repository: Any) -> None:
        self.local_root: Path | None = None
        self._repository = repository

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        path = validated(folder) if folder else None
        listed = persistently(lambda: self._repository.list_artifacts(path))
        found = [Entry(PurePosixPath(info.path).name, info.is_dir, info.file_size) for info in listed]
        return [entry for entry in found if _COMPONENT.fullmatch(entry.name)]

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`."""
        self.upload_all([file], folder)

    def upload_all(self, files: Sequence[Path], folder: str) -> None:
        """See :class:`Artifacts`."""
        path = validated(folder) if folder else None
        sizes = {validated(file.name): file.stat().st_size for file in files}

        def sent(file: Path) -> None:
            persistently(lambda: self._repository.log_artifact(str(file), path))

        side_by_side(sent, files)
        there = {entry.name: entry.size for entry in self.entries(folder)}
        for name, size in sizes.items():
            if there.get(name) != size:
                raise StorageError(f"{name} has {size} bytes here and {there.get(name)} in the artifact store.")

    def read(self, path: str, most: int) -> bytearray:
        """See :class:`Artifacts`."""
        validated(path)
        folder, _, name = path.rpartition("/")
        size = next((entry.size for entry in self.entries(folder) if entry.name == name and not entry.is_dir), None)
        if size is None:
            raise FileNotFoundError(path)
        if size > most:
            raise DamagedCheckpoint(f"{path} has {size} bytes; at most {most} were expected.")
        with _receiving(path, size) as temporary:
            received = temporary / name

            def download() -> None:
                try:  # download_artifacts() would list once more, and hide what went wrong behind one kind of error
                    self._repository._download_file(path, str(received))
                except Exception as error:
                    refusal = full_disk(error)
                    if refusal is None:
                        raise
                    raise _no_room(path, size, [temporary.parent], refusal.strerror) from error

            try:
                persistently(download)
            except StorageError as error:
                if status_of(error) == 404:
                    raise FileNotFoundError(path) from error  # removed since it was listed
                raise
            return LocalArtifacts(temporary).read(name, most)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`.

        Some stores answer that all went well when they removed nothing (S3 lists what was refused in its answer, which
        MLflow does not read), so every step is looked at before the next.
        """
        if not _CHECKPOINT.fullmatch(name):
            raise StorageError(f"{name!r} is not the name of a checkpoint; nothing was removed.")
        folder = f"{CHECKPOINTS}/{name}"
        persistently(lambda: self._repository.delete_artifacts(f"{folder}/{MANIFEST}"))
        if MANIFEST in {entry.name for entry in self.entries(folder)}:
            raise StorageError(f"The artifact store did not remove {folder}/{MANIFEST}; is deleting permitted there?")
        persistently(lambda: self._repository.delete_artifacts(folder))
        if self.entries(folder):
            raise StorageError(f"The artifact store did not remove all of {folder}; is deleting permitted there?")

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`; every step is looked at, as for a checkpoint."""
        folder = f"{OUTPUTS}/{_output_name(name)}"
        for path in (f"{folder}/{OUTPUT_RECORD}", folder):
            persistently(partial(self._repository.delete_artifacts, path))
            left = {entry.name for entry in self.entries(folder)}
            if OUTPUT_RECORD in left or (left and path == folder):
                raise StorageError(f"The artifact store did not remove all of {path}; is deleting permitted there?")

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        _refuse_unless_model(str(self._repository.artifact_uri), model_id)
        for entry in self.entries():
            persistently(partial(self._repository.delete_artifacts, validated(entry.name)))
        if self.entries():
            raise StorageError(f"The artifact store did not remove all of {self._repository.artifact_uri}.")

    def litter(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`; what a server keeps of broken uploads cannot be seen from here."""
        return []

    def remove_litter(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        return 0


class BucketArtifacts(RemoteArtifacts):
    """Artifacts in an S3 bucket, where an upload that was cut short keeps its parts, unseen, until somebody ends it."""

    def litter(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`."""
        return sorted(upload["Key"].removeprefix(self._prefix) for upload in self._unfinished(untouched))

    def remove_litter(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        uploads = self._unfinished(untouched)
        client = self._repository._get_s3_client()
        for upload in uploads:
            place = {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            persistently(partial(client.abort_multipart_upload, **place))
        return len(uploads)

    @property
    def _bucket(self) -> str:
        return str(self._repository.parse_s3_compliant_uri(self._repository.artifact_uri)[0])

    @property
    def _prefix(self) -> str:
        return str(self._repository.parse_s3_compliant_uri(self._repository.artifact_uri)[1]).rstrip("/") + "/"

    def _unfinished(self, untouched: float) -> list[dict[str, Any]]:
        client = self._repository._get_s3_client()

        def listed() -> list[dict[str, Any]]:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
            return [upload for page in pages for upload in page.get("Uploads", [])]

        def silent(upload: dict[str, Any]) -> float:
            parts = client.list_parts(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            times: list[datetime] = [upload["Initiated"], *(part["LastModified"] for part in parts.get("Parts", []))]
            return (datetime.now(UTC) - max(times)).total_seconds()

        try:
            uploads = persistently(listed)
            return [one for one in uploads if untouched <= 0 or persistently(partial(silent, one)) >= untouched]
        except StorageError as error:  # listing them is a right of its own, and not every store can
            log.warning("Whether unfinished uploads take up room in the bucket cannot be seen: %s", error)
            return []


def _refuse_unless_model(place: str, model_id: str) -> None:
    place = place.rstrip("/")
    if not _MODEL.fullmatch(model_id) or not place.endswith(f"/models/{model_id}/artifacts") or ".." in place:
        raise StorageError(
            f"{place} is not where the files of the LoggedModel {model_id!r:.80} are; nothing was removed."
        )


_CLIENTS = {
    "s3": ("boto3", "boto3"),
    "r2": ("boto3", "boto3"),
    "b2": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "azure-storage-blob azure-identity"),
    "abfss": ("azure.storage.filedatalake", "azure-storage-file-datalake azure-identity"),
    "hdfs": ("pyarrow", "pyarrow"),
    "viewfs": ("pyarrow", "pyarrow"),
    "sftp": ("paramiko", "paramiko"),
}
"""For a scheme the module that MLflow needs to reach such a store, and what to install for it."""

COMMITTED = ("mltrain.latest",)
"""The tag that a run has only after a checkpoint was committed."""
_RECORDED = ("mltrain.project", "mltrain.retention", *COMMITTED)
"""Tags that a run has only after something was put among its artifacts, where these are on this machine."""


def open_artifacts(artifact_uri: str, tracking_uri: str) -> Artifacts:
    """Return the artifacts at a run's artifact URI.

    Raises:
        UnusableArtifacts: the URI points elsewhere than a server of this URI may say, or cannot be reached from here.
    """
    refuse_elsewhere(artifact_uri, tracking_uri)
    parsed = urllib.parse.urlparse(artifact_uri)
    if parsed.scheme == "file":
        return LocalArtifacts(Path(urllib.request.url2pathname(parsed.path)))
    if parsed.scheme == "" or (len(parsed.scheme) == 1 and os.name == "nt"):  # C:\ is a drive and not a scheme
        return LocalArtifacts(Path(artifact_uri))
    place, store = redacted_uri(artifact_uri), redacted_uri(tracking_uri)
    if parsed.scheme == "mlflow-artifacts" and not tracking_uri.startswith(("http://", "https://")):
        raise UnusableArtifacts(
            f"Artifacts at {place} can only be reached through the MLflow server that made this experiment, and the "
            f"tracking URI is {store}. Expected the server's address. Try: MLFLOW_TRACKING_URI=http://HOST:PORT; or train in "
            "another experiment, made with: mlflow experiments create --experiment-name NAME --artifact-location FOLDER"
        )
    module, packages = _CLIENTS.get(parsed.scheme, ("", ""))
    if module and not _is_installed(module):
        raise UnusableArtifacts(
            f"Artifacts at {place} cannot be reached: the module {module} is not installed. Try: pip install {packages}"
        )
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    kind = BucketArtifacts if parsed.scheme == "s3" else RemoteArtifacts
    try:
        return kind(get_artifact_repository(artifact_uri, tracking_uri=tracking_uri))
    except Exception as error:  # each kind of store has errors of its own
        lines = redacted(str(error)).strip().splitlines()
        raise UnusableArtifacts(
            f"Artifacts at {place} cannot be reached with the tracking URI {store}: {type(error).__name__}: "
            f"{lines[0][:300] if lines else ''} Expected a folder, an MLflow server or an object store whose client is "
            "installed. Try: mltrain doctor"
        ) from error


def artifacts_of(server: "Server", run: Any, *, signs: Sequence[str] = _RECORDED) -> Artifacts:
    """Return the artifacts of a run, which have to be where the run says if anything was ever put there.

    Args:
        server: has the run.
        run: MLflow's description of it.
        signs: tags by which the run tells that something was put there.

    Raises:
        UnusableArtifacts: they were moved, are not mounted, or cannot be reached from here.
        StorageError: the artifact store does not answer.
    """
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    if artifacts.local_root is None:
        signs = COMMITTED  # elsewhere tags may arrive before files
    if any(sign in run.data.tags for sign in signs) and not artifacts.entries():
        raise UnusableArtifacts(_missing(f"run {run.info.run_id}", run.info.artifact_uri, artifacts, server))
    return artifacts


def refuse_unusable_place(server: "Server", experiment: Any) -> None:
    """Refuse an experiment in which a new run could not keep its artifacts.

    Raises:
        UnusableArtifacts: its place cannot be reached from here, or was there once and is gone.
        StorageError: its place cannot be written to.
    """
    place = experiment.artifact_location
    if not place:
        return
    root = open_artifacts(place, server.uri)
    if root.local_root is None:
        return
    if not os.path.lexists(root.local_root):
        query = f"tags.`{_RECORDED[0]}` != ''"
        if server.call(server.client.search_runs, [experiment.experiment_id], query, max_results=1):
            raise UnusableArtifacts(_missing(f"the experiment {experiment.name!r}", place, root, server))
    refuse_unwritable(root.local_root, "Choose another experiment: --experiment NAME.")


def _missing(whose: str, uri: str, artifacts: Artifacts, server: "Server") -> str:
    """Say which folder is missing, and how the artifacts are found again."""
    place = artifacts.local_root
    if place is None:
        return (
            f"The artifacts of {whose} are not at {redacted_uri(uri)}: nothing is there, although the run has committed a "
            "checkpoint. Expected what it committed. Try: give the server the storage that it had before "
            "(mlflow server --artifacts-destination PLACE)."
        )
    place = place.absolute()
    lost = next((above for above in (*reversed(place.parents), place) if not above.exists()), None)
    what = f"the folder {lost} does not exist" if lost is not None else f"the folder {place} is empty"
    remedy = "mount that folder, or move it back"
    moved = _moved(place, server.uri) if lost is not None else None
    if moved is not None:
        remedy = f"mkdir -p {moved[0].parent} && ln -s {moved[1]} {moved[0]}"
    elif lost is not None:
        remedy += f"; where it has another name now: ln -s NEW_FOLDER {lost}"
    return (
        f"The artifacts of {whose} are not at {place}: {what}. Expected the folder that {redacted_uri(server.uri)} records. "
        f"Try: {remedy}."
    )


def _moved(place: Path, tracking_uri: str) -> tuple[Path, Path] | None:
    """Return which folder has another name now, and which, where the artifacts went along with the database."""
    database = Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent
    for base in (database, Path.cwd()):
        for length in range(2, len(place.parts)):
            new = base.joinpath(*place.parts[-length:])
            if new.is_dir() and new != place:
                return Path(*place.parts[: 1 - length]), base / place.parts[-length]
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
