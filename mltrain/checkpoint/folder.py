"""A folder of packed checkpoints, used as an artifact store.

It holds ``best_model.pth``, ``checkpoint_epoch_N.pth`` and ``interrupt_checkpoint.pth``. Files that a training exported
(``export=full``), such as ``latest_checkpoint.pth`` and ``interrupted_checkpoint.pth``, are read as well.

A :class:`~mltrain.checkpoint.store.CheckpointStore` uses it like a run's artifacts; only the file names differ. Data without a
file name in this layout (notes, the record of removals, the lock) is in its subfolder ``.mltrain``.
"""

import json
import logging
from pathlib import Path

from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, Manifest
from mltrain.checkpoint.notes import NOTES_FILE
from mltrain.checkpoint.packed import PackedStaging, is_packed, member_names, read_member
from mltrain.checkpoint.staging import Spool, Staging
from mltrain.errors import DamagedCheckpoint, StorageError, UsageError
from mltrain.store.artifacts import Entry, Received, unwatched, validated
from mltrain.store.durable import link_or_copy, replace_file
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import CHECKPOINTS, PACKED, TEMPORARY
from mltrain.store.removal import discard_packed, discard_temporary

log = logging.getLogger(__name__)

BEST_MODEL = "best_model.pth"
EPOCH_PREFIX = "checkpoint_epoch_"
INTERRUPTED = "interrupt_checkpoint.pth"
OWN_FOLDER = ".mltrain"


def file_name(manifest: Manifest) -> str:
    """Return the name of a checkpoint's file."""
    if manifest.kind == "interrupted":
        return INTERRUPTED
    return f"{EPOCH_PREFIX}{manifest.epoch}.pth" if manifest.kind == "epoch" else f"checkpoint_step_{manifest.step}.pth"


class FolderArtifacts(LocalArtifacts):
    """The checkpoints in a folder.

    Args:
        folder: holds the checkpoints.
        only: the name of a single file to read, whatever it is. If ``None``, every file with a checkpoint's name.

    Raises:
        UsageError: it holds checkpoints of another program, which mltrain must not replace or remove.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        super().__init__(folder / OWN_FOLDER)
        self.local_root = folder
        self._only = only
        self._folder = folder
        self._known: dict[tuple[str, int, int, int], CheckpointId] = {}
        foreign = sorted(file.name for file in self._present() if is_packed(file) is False)
        if foreign:
            raise UsageError(
                f"{folder} holds checkpoints that mltrain did not write: {', '.join(foreign)[:300]}. Expected an empty folder "
                f"or one that CheckpointManager wrote. Try: another save_dir; or mltrain import {folder / foreign[-1]}, "
                "which makes it the first checkpoint of a run."
            )

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`~mltrain.store.artifacts.Artifacts`.

        Each checkpoint appears as a folder named by its identity.
        """
        if folder == CHECKPOINTS:
            return [Entry(name, True, None) for name in self.files()]
        if folder.startswith(f"{CHECKPOINTS}/"):
            return [Entry(name, False, None) for name in member_names(self._file(folder.split("/")[1]))]
        return super().entries(folder)

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        target = self._root / (validated(folder) if folder else "") / validated(file.name)
        replace_file(target, file.read_bytes())

    def read(self, path: str, most: int, received: Received = unwatched) -> bytearray:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        top, _, rest = path.partition("/")
        if path == NOTES_FILE and not super().entries():
            return self._only_best()
        if top != CHECKPOINTS:
            return super().read(path, most, received)
        name, _, member = rest.partition("/")
        return read_member(self._file(name), member, most, received)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`; all of its names are removed."""
        for file in self.files().get(name, []):
            discard_packed(file)

    def remove_output(self, name: str) -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`; a folder has no stage outputs."""
        raise StorageError(f"{self._folder} has no output {name!r:.80}; nothing was removed.")

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        return sorted(file.name for file in self._folder.glob(".*.tmp") if TEMPORARY.fullmatch(file.name))

    def remove_unfinished(self, untouched: float = 0.0) -> int:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        unfinished = self.unfinished()
        for name in unfinished:
            discard_temporary(self._folder / name)
        return len(unfinished)

    def files(self) -> dict[str, list[Path]]:
        """Return the files of each checkpoint by its name.

        The best one may have two. An unreadable file gets an identity of its own, so that reading it reports the damage.
        """
        found: dict[str, list[Path]] = {}
        unreadable = []
        for file in self._present():
            identity = self._identity(file)
            if identity is None:
                unreadable.append(file)
            else:
                found.setdefault(identity.name, []).append(file)
        for file in unreadable:
            match, attempt = PACKED.fullmatch(file.name), 1
            step = int(match[2] or 0) if match else 0
            while CheckpointId(attempt=attempt, step=step).name in found:
                attempt += 1
            found[CheckpointId(attempt=attempt, step=step).name] = [file]
        return found

    def mark_best(self, name: str, epoch_files: int | None) -> None:
        """Make ``best_model.pth`` a second name of a checkpoint.

        It is a hard link where the filesystem supports them, and a copy where not.

        Args:
            name: of the checkpoint.
            epoch_files: how many ``checkpoint_epoch_N.pth`` stay; an older best checkpoint keeps only
                ``best_model.pth``. If ``None``, all stay.

        Raises:
            StorageError: the disk refuses.
        """
        best, files = self._folder / BEST_MODEL, self.files()
        own = files.get(name, [])
        if not own:
            return
        if best not in own:
            link_or_copy(own[0], best)
            log.info("%s is now %s", best.name, own[0].name)
        newest_first = sorted((one for one in files if files[one] != [best]), key=_order, reverse=True)
        epochs = [one for one in newest_first if files[one][0].name.startswith(EPOCH_PREFIX)]
        if epoch_files is not None and name in epochs[epoch_files:]:
            for file in own:
                if file != best:
                    discard_packed(file)

    def _only_best(self) -> bytearray:
        """Return the notes of a folder that has none.

        A copied ``best_model.pth`` without metrics counts as declared best.
        """
        manifest = Manifest.from_json(bytes(read_member(self._folder / BEST_MODEL, FILE_NAME, MAX_BYTES)))
        if manifest.metrics:
            raise FileNotFoundError(NOTES_FILE)  # its metrics are comparable, so a better checkpoint may follow
        return bytearray(json.dumps({"checkpoint": manifest.name}).encode())

    def _present(self) -> list[Path]:
        """Return the checkpoint files, ``best_model.pth`` last.

        That one may be a second name of another.
        """
        try:
            named = [file for file in self._folder.iterdir() if self._is_checkpoint(file.name)]
            files = [file for file in named if file.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._folder} cannot be listed: {error.strerror}. Check that disk.") from error
        return sorted(files, key=lambda file: (file.name == BEST_MODEL, file.name))

    def _is_checkpoint(self, name: str) -> bool:
        return name == self._only if self._only is not None else PACKED.fullmatch(name) is not None

    def _file(self, name: str) -> Path:
        files = self.files().get(name)
        if not files:
            raise FileNotFoundError(name)
        return files[0]

    def _identity(self, file: Path) -> CheckpointId | None:
        try:
            status = file.stat()
            key = (file.name, status.st_ino, status.st_size, status.st_mtime_ns)
            if key not in self._known:
                self._known[key] = Manifest.from_json(bytes(read_member(file, FILE_NAME, MAX_BYTES))).id
            return self._known[key]
        except (OSError, DamagedCheckpoint):
            return None


class FolderSpool(Spool):
    """Stages checkpoints in place: a commit is one rename."""

    def staging(self, identity: CheckpointId) -> Staging:
        """Begin to stage a checkpoint."""
        return PackedStaging(self.root, identity)

    def complete(self) -> list[Path]:
        """Return nothing: every complete checkpoint is already committed."""
        return []

    def discard_unfinished(self) -> int:
        """Return 0: the next process that saves removes unfinished files."""
        return 0


def _order(name: str) -> tuple[int, int]:
    identity = CheckpointId.parse(name)
    return identity.order if identity is not None else (0, 0)
