"""The folder of a rank's checkpoints: shared, or staging per node."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mltrain.checkpoint.manifest import FILE_NAME, Manifest
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import StorageError
from mltrain.store.durable import refused, rename_folder, write_file
from mltrain.store.folders import state_folder
from mltrain.store.local import LocalArtifacts
from mltrain.store.opening import Address
from mltrain.store.removal import discard_staged, is_half_staged


@dataclass(frozen=True)
class Destination:
    """Where the checkpoints of a run go; rank 0 sends it to the other ranks.

    Attributes:
        folder: of the artifacts, shared by all machines. If ``None``, checkpoints are uploaded to an artifact store.
        address: of that artifact store.
        staging: folder of the run below the state folder of each node (``MLTRAIN_HOME``), for uploads.
    """

    folder: str | None
    address: Address | None = None
    staging: str | None = None

    @classmethod
    def of(cls, store: CheckpointStore) -> Self | None:
        """Return where a store's checkpoints go. ``None`` if only this process can reach it."""
        if store.artifacts.local_root is not None:
            return cls(str(store.artifacts.local_root))
        address = Address.of(store.artifacts)
        if address is None:
            return None
        if store.spool is None:
            return cls(None, address)
        homes = store.spool.root.parent.parent
        if not homes.is_relative_to(state_folder()):
            return None
        return cls(None, address, str(homes.relative_to(state_folder()) / store.run_id / store.spool.root.name))

    @property
    def here(self) -> Path:
        """The staging folder of this node."""
        assert self.staging is not None
        return state_folder() / self.staging

    def opened(self, run_id: str) -> CheckpointStore:
        """Return a store for reading, without downloads of staged checkpoints."""
        if self.folder is not None:
            return CheckpointStore(run_id, LocalArtifacts(Path(self.folder)))
        assert self.address is not None
        spool = Spool(self.here) if self.staging is not None and self.here.is_dir() else None
        return CheckpointStore(run_id, self.address.open(), spool)


class NodeCopy:
    """The staged copy of a checkpoint on one node.

    All ranks of the node write into it. The first of them, which creates the folder, completes it.

    Args:
        spool: of this node.
        name: of the folder while it is written; rank 0 chooses it.
        kept: names of the staged checkpoints that rank 0 still needs. Other and unfinished ones are removed.

    Raises:
        StorageError: the disk refuses.
    """

    def __init__(self, spool: Spool, name: str, kept: Collection[str]) -> None:
        self.folder = spool.root / name
        for left in (one for one in spool.root.iterdir() if is_half_staged(one) and one.name != name):
            discard_staged(left)
        for staged in (one for one in spool.complete() if one.name not in kept):
            discard_staged(staged)
        try:
            self.folder.mkdir()
            self._first = True
        except FileExistsError:
            self._first = False
        except OSError as error:
            raise refused(spool.root, error) from error

    def complete(self, manifest: Manifest) -> None:
        """Write the manifest and rename the folder.

        Raises:
            StorageError: the disk refuses.
        """
        target = self.folder.with_name(manifest.name)
        if self._first:
            discard_staged(target)  # from an earlier try that failed on another rank
            write_file(self.folder / FILE_NAME, [manifest.to_json()])
            rename_folder(self.folder, target, lambda: None)
        self.folder = target

    def discard(self) -> None:
        """Remove the copy, on the first rank of the node."""
        if self._first:
            try:
                discard_staged(self.folder)
            except StorageError:
                return  # the next copy removes it
