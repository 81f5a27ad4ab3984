"""Local staging: write a checkpoint, flush it, rename it.

The files go to a folder with a temporary name (``step-…-a….<random>.tmp``), the manifest last, and the folder gets its final
name once everything is flushed. A power failure at any moment leaves either the complete checkpoint or a folder that is not
taken for one.
"""

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from mltrain.checkpoint.manifest import FILE_NAME, CheckpointId, FileEntry, Manifest
from mltrain.errors import StorageError
from mltrain.store.durable import make_folder, refused, rename_folder, replace_file, write_file
from mltrain.store.removal import discard_staged, is_half_staged


class Spool:
    """The folder with the staged checkpoints of one run.

    Raises:
        StorageError: the folder cannot be created or written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        make_folder(root)

    def staging(self, identity: CheckpointId) -> "Staging":
        """Begin to stage a checkpoint."""
        return Staging(self.root / f"{identity.name}.{secrets.token_hex(4)}.tmp")

    def complete(self) -> list[Path]:
        """Return the folders of complete checkpoints, sorted by name."""
        return sorted(f for f in self._folders() if CheckpointId.parse(f.name) and (f / FILE_NAME).is_file())

    def discard_unfinished(self) -> int:
        """Remove incomplete stagings and return their number.

        Only the process that holds the run may call this.
        """
        unfinished = [folder for folder in self._folders() if is_half_staged(folder)]
        for folder in unfinished:
            discard_staged(folder)
        return len(unfinished)

    def _folders(self) -> list[Path]:
        try:
            return list(self.root.iterdir())
        except OSError as error:
            raise StorageError(f"{self.root} cannot be listed: {error.strerror}. Try: check that disk.") from error


class Staging:
    """A checkpoint being written.

    Leaving the block without :meth:`commit` removes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}
        self._committed = False

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir()
        except OSError as error:
            raise refused(self.folder.parent, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            discard_staged(self.folder)

    def write(self, name: str, content: Iterable[bytes | memoryview], *, cached: bool = True) -> None:
        """Write, hash and flush a file.

        Args:
            name: of the file.
            content: in pieces.
            cached: whether the file is read soon, as for an upload; see :func:`~mltrain.store.durable.write_file`.

        Raises:
            StorageError: the disk is full or fails.
        """
        size, digest = write_file(self.folder / name, content, cached=cached)
        self.files[name] = FileEntry(size=size, sha256=digest)

    def commit(self, manifest: Manifest, target: Path, guard: Callable[[], None] = lambda: None) -> None:
        """Write the manifest, flush everything, and rename to ``target``.

        Args:
            manifest: of the checkpoint.
            target: the final path of the checkpoint.
            guard: called right before the rename; its errors are raised.

        Raises:
            StorageError: the disk is full or fails, or the folder ``target`` exists.
        """
        self.write(FILE_NAME, [manifest.to_json()])
        del self.files[FILE_NAME]
        self._place(target, guard)
        self._committed = True

    def _place(self, target: Path, guard: Callable[[], None]) -> None:
        rename_folder(self.folder, target, guard)


def assign_run_id(folder: Path, run_id: str) -> Manifest:
    """Write the run's final id into a staged manifest.

    The checkpoint was staged under the run's provisional id. Returns the new manifest.

    Raises:
        StorageError: the disk refuses.
        DamagedCheckpoint: the manifest was changed.
    """
    content = (folder / FILE_NAME).read_bytes()
    manifest = Manifest.from_json(content, name=folder.name).model_copy(update={"run_id": run_id})
    replace_file(folder / FILE_NAME, manifest.to_json())
    return manifest
