"""Artifacts in a folder on this machine."""

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import Entry, Hashed, Received, Send, storage_errors, unwatched, validated
from mltrain.store.names import (
    CHECKPOINT,
    CHECKPOINTS,
    COMPONENT,
    OUTPUTS,
    STAGING,
    UPLOADING,
)
from mltrain.store.removal import (
    DEAD_SECONDS,
    discard_staged,
    is_half_staged,
    output_name,
    refuse_unless_model,
    remove_flat,
    remove_tree,
)

_PIECE = 2**20
"""Bytes per read: few enough to be hashed from the processor's cache."""


def open_safely(path: str, flags: int) -> int:
    """Open a file without following links or blocking on pipes."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def read_hashed(file: Any, size: int, received: Received = unwatched) -> Hashed | None:
    """Return the next ``size`` bytes, ``None`` if fewer are left."""
    content, digest, done = Hashed(size), hashlib.sha256(), 0
    whole = memoryview(content)
    while read := file.readinto(whole[done : done + _PIECE]):
        digest.update(whole[done : done + read])
        done += read
        received(read)
    content.sha256 = digest.hexdigest()
    return content if done == size else None


class LocalArtifacts:
    """Artifacts in a folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.local_root: Path | None = root
        self._root = root

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        place, found = self._root / validated(folder) if folder else self._root, []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if COMPONENT.fullmatch(entry.name):
                        # An entry that vanishes meanwhile, such as a pruned checkpoint, must not hide the others.
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
        """See :class:`Artifacts`; the file appears only when it is complete."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        validated(file.name)
        with storage_errors():
            LocalArtifactRepository(str(self._root)).log_artifact(str(file), validated(folder) if folder else None)

    def sender(self, folder: str) -> Send | None:
        """See :class:`Artifacts`; checkpoints are staged beside the artifacts."""
        return None

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """See :class:`Artifacts`."""
        for file in files:
            self.upload(file, folder)

    def read(self, path: str, most: int, received: Received = unwatched) -> bytearray:
        """See :class:`Artifacts`."""
        with open(self._root / validated(path), "rb", opener=open_safely) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise DamagedCheckpoint(f"{path} has {size} bytes. Expected at most {most}.")
            content = read_hashed(file, size, received)
            if content is None or file.read(1):
                raise DamagedCheckpoint(f"{path} changed while it was read.")
            return content

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        if not CHECKPOINT.fullmatch(name):
            raise StorageError(f"{name!r} is not the name of a checkpoint; nothing was removed.")
        checkpoints = self._root / CHECKPOINTS
        if checkpoints.is_symlink():
            raise StorageError(f"{checkpoints} is a link, perhaps to another run; nothing was removed.")
        remove_flat(checkpoints / name, CHECKPOINT)

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`."""
        output_name(name)
        made = self._root / OUTPUTS
        if made.is_symlink():
            raise StorageError(f"{made} is a link, perhaps to another run; nothing was removed.")
        remove_tree(made / name)

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        refuse_unless_model(self._root.as_posix(), model_id)
        try:
            shutil.rmtree(self._root)  # does not follow links
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{self._root} could not be removed completely: {error}") from error

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`."""
        files = [file.relative_to(self._root).as_posix() for file in self._uploading(untouched)]
        return files + [f"../{STAGING}/{folder.name}" for folder in self._half_staged()]

    def remove_unfinished(self, untouched: float = DEAD_SECONDS) -> int:
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
            for file in (Path(folder, name) for name in names if name.startswith(UPLOADING)):
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
        return sorted(folder for folder in staging.iterdir() if is_half_staged(folder))
