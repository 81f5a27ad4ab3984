"""The one door to the artifacts of a run: every path is validated here, and nothing else in mltrain deletes.

MLflow validates nothing when it deletes: an empty path removes all artifacts of the run, and ``../`` reaches other runs.
So deletion takes the name of a checkpoint, matched by its strict pattern, and removes the manifest before the data: what
a crash leaves behind is not a checkpoint any more.
"""

import os
import re
import stat
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.tracking.elsewhere import refuse_elsewhere
from mltrain.tracking.retry import FullJitter

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"step-\d{9}-a\d{2,6}", re.ASCII)
_STAGED = re.compile(r"step-\d{9}-a\d{2,6}(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@,=()#~-]{0,199}", re.ASCII)
RETRY_SECONDS = 60.0

T = TypeVar("T")


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

    def litter(self) -> list[str]:
        """Return the paths of temporary files that an interrupted upload of MLflow left."""
        ...

    def remove_litter(self) -> int:
        """Remove these, and return how many there were. Only for a run that nobody writes to."""
        ...


def validated(path: str) -> str:
    """Return a relative artifact path unchanged, or refuse it.

    Raises:
        StorageError: it is empty, absolute, has ``..``, control or other unusual characters in a component.
    """
    if not path or not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        raise StorageError(f"{path!r:.200} is not a path of an artifact: plain names joined by / are expected.")
    return path


def _without_surprises(path: str, flags: int) -> int:
    """Open a file, but neither follow a link nor wait at a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


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
        place = self._root / validated(folder) if folder else self._root
        try:
            found = [(entry, entry.stat(follow_symlinks=False)) for entry in os.scandir(place)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"The artifacts in {place} cannot be listed: {error.strerror}.") from error
        return [
            Entry(entry.name, stat.S_ISDIR(info.st_mode), None if stat.S_ISDIR(info.st_mode) else info.st_size)
            for entry, info in found
            if (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)) and _COMPONENT.fullmatch(entry.name)
        ]

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`; the file appears under its name only when it is complete."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        validated(file.name)
        with _named_errors():
            LocalArtifactRepository(str(self._root)).log_artifact(str(file), validated(folder) if folder else None)

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
        _remove_flat(self._root / CHECKPOINTS / name, _CHECKPOINT)

    def litter(self) -> list[str]:
        """See :class:`Artifacts`."""
        return [file.relative_to(self._root).as_posix() for file in self._litter()]

    def remove_litter(self) -> int:
        """See :class:`Artifacts`."""
        files = self._litter()
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def _litter(self) -> list[Path]:
        return [file for file in self._root.rglob(".artifact.uploading.*") if file.is_file() and not file.is_symlink()]


class RemoteArtifacts:
    """Artifacts behind one of MLflow's artifact repositories: a tracking server, S3 and the like."""

    def __init__(self, repository: Any) -> None:
        self.local_root: Path | None = None
        self._repository = repository

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        path = validated(folder) if folder else None
        listed = _persistently(lambda: self._repository.list_artifacts(path))
        found = [Entry(PurePosixPath(info.path).name, info.is_dir, info.file_size) for info in listed]
        return [entry for entry in found if _COMPONENT.fullmatch(entry.name)]

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`."""
        path, size = validated(folder) if folder else None, file.stat().st_size
        validated(file.name)

        def once() -> None:
            self._repository.log_artifact(str(file), path)

        _persistently(once)
        there = {entry.name: entry.size for entry in self.entries(folder)}
        if there.get(file.name) != size:
            raise StorageError(f"{file.name} has {size} bytes here and {there.get(file.name)} in the artifact store.")

    def read(self, path: str, most: int) -> bytearray:
        """See :class:`Artifacts`."""
        validated(path)
        folder, _, name = path.rpartition("/")
        size = next((entry.size for entry in self.entries(folder) if entry.name == name and not entry.is_dir), None)
        if size is None:
            raise FileNotFoundError(path)
        if size > most:
            raise DamagedCheckpoint(f"{path} has {size} bytes; at most {most} were expected.")
        with tempfile.TemporaryDirectory(prefix="mltrain-") as temporary:
            # The file may land anywhere below the folder given: the path that comes back is the true one.
            received = Path(_persistently(lambda: self._repository.download_artifacts(path, temporary)))
            return LocalArtifacts(received.parent).read(received.name, most)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        if not _CHECKPOINT.fullmatch(name):
            raise StorageError(f"{name!r} is not the name of a checkpoint; nothing was removed.")
        _persistently(lambda: self._repository.delete_artifacts(f"{CHECKPOINTS}/{name}/{MANIFEST}"))
        _persistently(lambda: self._repository.delete_artifacts(f"{CHECKPOINTS}/{name}"))

    def litter(self) -> list[str]:
        """See :class:`Artifacts`; what a server or a bucket keeps of broken uploads cannot be seen from here."""
        return []

    def remove_litter(self) -> int:
        """See :class:`Artifacts`."""
        return 0


def open_artifacts(artifact_uri: str, tracking_uri: str) -> Artifacts:
    """Return the artifacts at a run's artifact URI.

    Raises:
        StorageError: it points elsewhere than a server of this URI may say.
    """
    refuse_elsewhere(artifact_uri, tracking_uri)
    parsed = urllib.parse.urlparse(artifact_uri)
    if parsed.scheme == "file":
        return LocalArtifacts(Path(urllib.request.url2pathname(parsed.path)))
    if parsed.scheme == "" or (len(parsed.scheme) == 1 and os.name == "nt"):  # C:\ is a drive and not a scheme
        return LocalArtifacts(Path(artifact_uri))
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return RemoteArtifacts(get_artifact_repository(artifact_uri, tracking_uri=tracking_uri))


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (StorageError, DamagedCheckpoint, FileNotFoundError):
        raise
    except Exception as error:
        raise StorageError(
            f"The artifact store does not answer as it should: {type(error).__name__}: {error}"
        ) from error


def _persistently(call: Callable[[], T]) -> T:
    """Call the artifact store, again and again for a while when it fails in a way that may pass."""
    with _named_errors():
        return Retrying(
            stop=stop_after_delay(RETRY_SECONDS),
            wait=FullJitter(multiplier=0.2, max=5),
            retry=retry_if_exception(may_pass),
            reraise=True,
        )(call)


def may_pass(error: BaseException) -> bool:
    """Whether what a store's client raised may be different the next time."""
    if isinstance(error, (StorageError, DamagedCheckpoint, FileNotFoundError, PermissionError)):
        return False
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None and isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status is None or status in (408, 425, 429) or status >= 500
