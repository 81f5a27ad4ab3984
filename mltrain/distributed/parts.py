"""Writing the pieces of one snapshot: every rank writes its part when rank 0's committer asks."""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.manifest import FileEntry, Manifest
from mltrain.checkpoint.ports import Peers
from mltrain.checkpoint.shards import Part, Piece, part_name, write_part
from mltrain.checkpoint.staging import Spool
from mltrain.distributed.node import Destination, NodeCopy
from mltrain.distributed.uploads import PeerUploads, Upload, Uploads
from mltrain.distributed.world import Channel
from mltrain.errors import DamagedCheckpoint, NonFiniteLoss, PeerLost, StorageError, shortened

log = logging.getLogger(__name__)


@dataclass
class RankPieces:
    """The pieces of one snapshot that this rank writes.

    Attributes:
        channel: for messages in the background.
        pieces: name to piece.
        own: name to this rank's piece of each sharded tensor, to be checked for NaN and infinity.
        weights: name of the part with a model's weights. If ``None``, no part is a model.
        tree: of the state; ``None`` on rank 0.
        destination: of the checkpoint.
    """

    channel: Channel
    pieces: Mapping[str, Piece]
    own: Mapping[str, Tensor]
    weights: str | None
    tree: Any
    destination: Destination

    def _write(self, folder: Path) -> tuple[str, FileEntry, int]:
        return write_part(folder, self.channel.rank, self.pieces, self.weights)

    def _answers(self, work: Callable[[], Any]) -> list[Any]:
        """Do this rank's work and return all ranks' results.

        Raises:
            NonFiniteLoss, StorageError: the work of a rank failed; raised on rank 0 only.
            PeerLost: a rank has ended.
        """
        answer: tuple[Any, str, str | None]
        try:
            answer = work(), "", None
        except Exception as error:  # noqa: BLE001 - sent to all ranks
            answer = None, type(error).__name__, f"{error}"
        answers = self.channel.gather(answer)
        for rank, (_, kind, why) in enumerate(answers):
            if why is not None and self.channel.rank == 0:
                raise (NonFiniteLoss if kind == "NonFiniteLoss" else StorageError)(f"Rank {rank}: {why}")
        return [result for result, _, _ in answers]


@dataclass
class LeaderPieces(RankPieces):
    """Rank 0's pieces: :class:`mltrain.checkpoint.ports.Pieces`.

    Attributes:
        peer_uploads: expects the other ranks' uploads of the checkpoint; the rest as for :class:`RankPieces`.
        peers: the other ranks.
    """

    peer_uploads: PeerUploads = field(kw_only=True)
    _token = ""
    _complete = False

    def __post_init__(self) -> None:
        self.peers: Peers = self.peer_uploads

    def write(self, folder: Path) -> dict[str, tuple[FileEntry, int]]:
        """Let every rank write its part.

        Raises:
            NonFiniteLoss: the piece of a rank is not finite.
            StorageError: a rank could not write, or rank 0 does not see its files.
            PeerLost: a rank has ended.
        """
        self._token, shared = folder.name, self.destination.folder is not None
        kept = [] if shared else [staged.name for staged in Spool(folder.parent).complete()]
        self.channel.share(("write", str(folder) if shared else folder.name, kept))
        parts = {}
        for rank, (name, entry, size) in enumerate(self._answers(lambda: self._write(folder))):
            if shared and not _is_visible(folder, name, entry):
                raise StorageError(
                    f"{name}, which rank {rank} has written into {folder}, is not visible on rank 0's machine. Expected an "
                    "artifact folder that all machines share. Try: an artifact store such as S3, or the tracking server's"
                )
            parts[name] = (entry, size)
        return parts

    def complete(self, manifest: Manifest, commit: Callable[[], object]) -> None:
        """Let the other nodes complete their copies, then call ``commit``.

        Raises:
            MltrainError: a rank could not complete its copy, or ``commit`` failed.
        """
        if self.destination.folder is None:
            self.channel.share(("complete", manifest))
            self._answers(lambda: None)
            self.peer_uploads.add(manifest, self._token)
        commit()
        self._complete = True

    def end(self) -> None:
        """Tell the other ranks that this snapshot is finished."""
        try:
            self.channel.share(("end", self._complete))
        except PeerLost as lost:
            log.debug("The other ranks are gone: %s", lost)


@dataclass
class FollowerPieces(RankPieces):
    """The pieces of a rank other than 0.

    Attributes:
        uploads: of this rank's staged files; the rest as for :class:`RankPieces`.
    """

    uploads: Uploads = field(kw_only=True)
    _copy: NodeCopy | None = field(default=None, init=False)
    _manifest: Manifest | None = field(default=None, init=False)

    def follow(self) -> None:
        """Write when rank 0 asks; upload the completed checkpoint."""
        complete, token = False, ""
        try:
            while True:
                command, *arguments = self.channel.share()
                if command == "end":
                    complete = arguments[0]
                    return
                if command == "write":
                    token = arguments[0]
                    self._answers(partial(self._written, *arguments))
                else:
                    self._answers(partial(self._completed, arguments[0]))
        finally:
            if self._copy is not None and not complete:
                self._copy.discard()
            elif self._copy is not None and self._manifest is not None and self.destination.address is not None:
                part = part_name(self.channel.rank)
                self.uploads.add(Upload(self.destination.address, self._copy.folder, self._manifest, part, token))

    def _written(self, name: str, kept: Collection[str]) -> tuple[str, FileEntry, int]:
        wrong = nonfinite(_only(self.tree, self.own), self.own)
        if wrong:
            raise NonFiniteLoss(f"weights or optimizer state hold NaN or infinity: {shortened(wrong, 5)}.")
        if self.destination.folder is not None:
            return self._write(Path(name))
        if self._copy is not None:
            self._copy.discard()
        self._copy = NodeCopy(self.uploads.spool(self.destination), name, kept)
        return self._write(self._copy.folder)

    def _completed(self, manifest: Manifest) -> None:
        assert self._copy is not None
        self._copy.complete(manifest)
        self._manifest = manifest


def _only(tree: Any, names: Collection[str]) -> Any:
    """Return the tree of a state with only these tensors; rank 0 checks the others."""
    if isinstance(tree, list):
        return [_only(one, names) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get("$") in ("tensor", "view"):
        return tree if tree["$"] == "tensor" and tree["name"] in names else None
    return {key: _only(one, names) for key, one in tree.items()}


def _is_visible(folder: Path, name: str, entry: FileEntry) -> bool:
    """Whether this machine sees a part file and its files."""
    try:
        content = (folder / name).read_bytes()
        listed = Part.from_json(content, name).files
        sizes = [(folder / file).stat().st_size == one.size for file, one in listed.items()]
    except (OSError, DamagedCheckpoint):
        return False
    return all(sizes) and hashlib.sha256(content).hexdigest() == entry.sha256
