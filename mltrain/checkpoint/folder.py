"""A folder of packed checkpoints, as artifacts: ``best_model.pth``, ``checkpoint_epoch_N.pth``, ``interrupt_checkpoint.pth``.

Those that a training exports (``export=full``) are read as well, ``latest_checkpoint.pth`` and ``interrupted_checkpoint.pth``
among them.

A :class:`~mltrain.checkpoint.store.CheckpointStore` works on it as on a run's artifacts; only the names of files differ. What has
no name in this layout (what was declared best, the record of removals, the lock) is in the folder ``.mltrain`` in it.
"""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, Manifest
from mltrain.checkpoint.notes import NOTES_FILE
from mltrain.checkpoint.packed import PackedStaging, is_packed, member_names, read_member
from mltrain.checkpoint.staging import Spool, Staging
from mltrain.errors import DamagedCheckpoint, StorageError, UsageError
from mltrain.store.artifacts import Entry, Send
from mltrain.store.durable import link_or_copy, replace_file
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import CHECKPOINTS, PACKED, TEMPORARY, validated
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


class FolderArtifacts:
    """The checkpoints in a folder.

    Args:
        folder: that holds them.
        only: the name of the one file to look at, whatever it is. If ``None``, all that have the name of a checkpoint.

    Raises:
        UsageError: it holds checkpoints that mltrain did not write: they are nobody's to replace or remove.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        self.local_root: Path | None = folder
        self._only = only
        self._folder = folder
        self._own = LocalArtifacts(folder / OWN_FOLDER)
        self._known: dict[tuple[str, int, int, int], CheckpointId] = {}
        foreign = sorted(file.name for file in self._present() if is_packed(file) is False)
        if foreign:
            raise UsageError(
                f"{folder} holds checkpoints that mltrain did not write: {', '.join(foreign)[:300]}. Expected an empty folder "
                f"or one that CheckpointManager wrote. Try: another save_dir; or mltrain import {folder / foreign[-1]}, "
                "which makes it the first checkpoint of a run."
            )

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`~mltrain.store.artifacts.Artifacts`; each checkpoint is a folder of its identity's name."""
        if folder == CHECKPOINTS:
            return [Entry(name, True, None) for name in self.files()]
        if folder.startswith(f"{CHECKPOINTS}/"):
            return [Entry(name, False, None) for name in member_names(self._file(folder.split("/")[1]))]
        return self._own.entries(folder)

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        assert self._own.local_root is not None
        target = self._own.local_root / (validated(folder) if folder else "") / validated(file.name)
        replace_file(target, file.read_bytes())

    def sender(self, folder: str) -> Send | None:
        """See :class:`~mltrain.store.artifacts.Artifacts`; checkpoints are staged beside their place already."""
        return None

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        for file in files:
            self.upload(file, folder)

    def read(self, path: str, most: int) -> bytearray:
        """See :class:`~mltrain.store.artifacts.Artifacts`."""
        top, _, rest = path.partition("/")
        if path == NOTES_FILE and not self._own.entries():
            return self._only_best()
        if top != CHECKPOINTS:
            return self._own.read(path, most)
        name, _, member = rest.partition("/")
        return read_member(self._file(name), member, most)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`; removed under all of its names."""
        for file in self.files().get(name, []):
            discard_packed(file)

    def remove_model(self, model_id: str) -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`; a folder has no LoggedModels."""
        raise StorageError(f"{self._folder} has no LoggedModel {model_id!r:.80}; nothing was removed.")

    def remove_output(self, name: str) -> None:
        """See :class:`~mltrain.store.artifacts.Artifacts`; a folder has no outputs of stages."""
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
        """Return the names of the checkpoints, each with its files: the best one may have two.

        A file that cannot be read gets an identity that no other one has, under which reading it reports the damage.
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
        """Let ``best_model.pth`` stand for a checkpoint, by a hard link where the disk has them.

        Args:
            name: of the checkpoint.
            epoch_files: how many ``checkpoint_epoch_N.pth`` stay; an older best one has ``best_model.pth`` alone.
                If ``None``, all stay.

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
        """Return the notes of a folder in which nothing was noted: a ``best_model.pth`` that was copied here is the best one."""
        manifest = Manifest.from_json(bytes(read_member(self._folder / BEST_MODEL, FILE_NAME, MAX_BYTES)))
        if manifest.metrics:
            raise FileNotFoundError(NOTES_FILE)  # these say how good it is, so a better one may follow
        return bytearray(json.dumps({"checkpoint": manifest.name}).encode())

    def _present(self) -> list[Path]:
        """Return the files whose names are those of checkpoints; ``best_model.pth``, which may be a second name, last."""
        try:
            named = [file for file in self._folder.iterdir() if self._is_meant(file.name)]
            files = [file for file in named if file.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._folder} cannot be listed: {error.strerror}. Check that disk.") from error
        return sorted(files, key=lambda file: (file.name == BEST_MODEL, file.name))

    def _is_meant(self, name: str) -> bool:
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
    """Stages checkpoints in the folder itself: a commit is one rename."""

    def staging(self, identity: CheckpointId) -> Staging:
        """Begin to stage a checkpoint."""
        return PackedStaging(self.root, identity, file_name)

    def complete(self) -> list[Path]:
        """Return nothing: what is complete is committed."""
        return []

    def discard_unfinished(self) -> int:
        """Return 0: what interrupted processes left is removed by the next process that saves."""
        return 0


def _order(name: str) -> tuple[int, int]:
    identity = CheckpointId.parse(name)
    return identity.order if identity is not None else (0, 0)
