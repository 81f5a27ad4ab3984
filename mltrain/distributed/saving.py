"""Saving the state of all ranks: rank 0 keeps what they have in common, and every rank writes its pieces of sharded tensors."""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.manifest import FileEntry
from mltrain.checkpoint.pytree import flatten, is_sharded
from mltrain.checkpoint.shards import Part, Piece, write_part
from mltrain.checkpoint.snapshot import ShardedState, weights_of
from mltrain.checkpoint.worker import Worker
from mltrain.distributed.pieces import box, gathered, has_sharded
from mltrain.distributed.replicas import digest, own_parts
from mltrain.distributed.world import Channel, World
from mltrain.errors import DamagedCheckpoint, NonFiniteLoss, PeerLost, StateMismatch, StorageError, shortened
from mltrain.trainer.ports import Saver
from mltrain.trainer.ranks import with_own_parts

log = logging.getLogger(__name__)

Box = tuple[tuple[int, ...], tuple[int, ...]]


class TogetherSaver:
    """Saves the state of all ranks; rank 0 commits it.

    Args:
        world: the ranks.
        trained: name to part of the task.
        saver: keeps the state on rank 0. If ``None``, this is another rank.
        channel: what the ranks say in the background. If ``None``, sharded tensors are gathered on rank 0.
    """

    def __init__(
        self, world: World, trained: Mapping[str, Any], saver: Saver | None, channel: Channel | None = None
    ) -> None:
        self._world = world
        self._trained = trained
        self._saver: Any = saver
        self._shards = Shards(world, channel) if channel is not None else None
        self._here: bool | None = None

    def save(self, state: Mapping[str, Any], **facts: Any) -> None:
        """Compare the state with that of the other ranks, and keep it with what is each rank's own."""
        own = own_parts(self._world, state, self._trained)
        if self._shards is not None and has_sharded(state) and self._is_here():
            self._shards.save(with_own_parts(state, own), self._saver, facts)
            return
        state = {name: gathered(part) if has_sharded(part) else part for name, part in state.items()}
        if self._saver is not None:
            self._saver.save(with_own_parts(state, own), **facts)

    def _is_here(self) -> bool:
        """Whether the artifacts are in a folder of this machine, as rank 0 sees it, and not in another store."""
        if self._here is None:
            root = self._saver.store.artifacts.local_root if hasattr(self._saver, "store") else None
            self._here = bool(self._world.share(root is not None))
        return self._here

    def settle(self) -> None:
        """Wait until this rank has written what was saved, or has given it up."""
        if self._shards is not None:
            self._shards.settle()

    def peek(self) -> Mapping[str, Any] | None:
        """Return the newest checkpoint, on rank 0."""
        kept: Mapping[str, Any] | None = self._saver.peek() if self._saver is not None else None
        return kept

    @property
    def failure(self) -> Any:
        """Why the newest state was not kept, on rank 0."""
        return self._saver.failure if self._saver is not None else None


class Shards:
    """The pieces of sharded tensors, which every rank copies at the same step and writes in the background.

    Rank 0's committer decides when and where to: it tells the other ranks through a group of its own.

    Args:
        world: the ranks.
        channel: what they say in the background.
    """

    def __init__(self, world: World, channel: Channel) -> None:
        self._world = world
        self._channel = channel
        self._disk = Worker("mltrain-shards")
        self._buffers = HostBuffers()
        self._boxes: dict[str, Box] | None = None
        self._mine: frozenset[str] = frozenset()
        self._taken = False

    def save(self, state: Mapping[str, Any], saver: Saver | None, facts: Mapping[str, Any]) -> None:
        """Let every rank take its pieces of a state, and rank 0 save it."""
        flat = flatten(state, weights_of(state), sharded=True)
        self._plan({name: tensor for name, tensor in flat.tensors.items() if is_sharded(tensor)})
        if saver is not None:
            self._taken = False
            saver.save(ShardedState(state, self._take), **facts)
            self._world.share(self._taken)
            return
        self.settle()
        copied = self._copied(flat.tensors, weights_of(state), flat.tree)
        if self._world.share():
            self._disk.do(copied.follow)

    def settle(self) -> None:
        """Wait until this rank has written what was saved, or has given it up."""
        self._disk.wait()

    def _take(self, tensors: Mapping[str, Tensor], weights: str | None) -> "_Copied":
        self._taken = True
        return self._copied(tensors, weights, None)

    def _copied(self, tensors: Mapping[str, Any], weights: str | None, tree: Any) -> "_Copied":
        local = {name: tensors[name].to_local().detach() for name in self._mine}
        copies = self._buffers.copy(local)
        assert self._boxes is not None
        pieces = {
            name: Piece(copies[name], self._boxes[name][0], tuple(tensors[name].shape)) for name in sorted(self._mine)
        }
        empty = {n: torch.empty(0, dtype=tensors[n].dtype) for n in self._boxes if n not in pieces}
        held = {**empty, **{name: piece.tensor for name, piece in pieces.items()}}
        return _Copied(self._channel, pieces, held, weights, tree)

    def _plan(self, tensors: Mapping[str, Any]) -> None:
        """Find out which pieces this rank writes: of those that several ranks hold, the lowest one's.

        Raises:
            StateMismatch: ranks that hold the same piece differ, or the pieces do not make up a tensor.
        """
        boxes = {name: box(tensor) for name, tensor in tensors.items()}
        if not all(self._world.gather(boxes == self._boxes)):
            self._boxes, heard = boxes, self._world.gather(boxes)
            self._mine = frozenset(_owned(heard, self._world.rank, {n: tuple(t.shape) for n, t in tensors.items()}))
            self._several = sorted(_held_by_several(heard))
        if not self._several:
            return
        own = {n: digest(tensors[n].to_local()) for n in self._several if n in tensors}
        digests: dict[tuple[str, Box], set[str]] = {}
        for ranks_boxes, found in zip(self._world.gather(boxes), self._world.gather(own), strict=True):
            for name, one in found.items():
                digests.setdefault((name, ranks_boxes[name]), set()).add(one)
        differing = sorted({name for (name, _), found in digests.items() if len(found) > 1})
        if differing:
            raise StateMismatch(
                f"all ranks: several hold the same piece of {shortened(differing)}, and differ",
                advice="Expected ranks that train the same batches to compute alike. Go on from the last checkpoint with a step "
                "that draws the same random numbers on them.",
            )


class _Copied:
    """The pieces of one snapshot that this rank writes: :class:`mltrain.checkpoint.snapshot.Pieces`."""

    def __init__(
        self,
        channel: Channel,
        pieces: Mapping[str, Piece],
        own: Mapping[str, Tensor],
        weights: str | None,
        tree: Any,
    ) -> None:
        self.own = own
        self._channel = channel
        self._pieces = pieces
        self._weights = weights
        self._tree = tree

    def write(self, folder: Path) -> dict[str, tuple[FileEntry, int]]:
        """Let every rank write its part; for rank 0.

        Raises:
            NonFiniteLoss: the piece of a rank is not finite.
            StorageError: a rank could not write, or its files are not in this folder here.
            PeerLost: a rank has ended.
        """
        self._channel.share(str(folder))
        answers = self._channel.gather(self._answer(lambda: write_part(folder, 0, self._pieces, self._weights)))
        for rank, (_, kind, why) in enumerate(answers):
            if why is not None:
                raise (NonFiniteLoss if kind == "NonFiniteLoss" else StorageError)(f"Rank {rank}: {why}")
        parts = {}
        for rank, ((name, entry, size), _, _) in enumerate(answers):
            if not _is_there(folder, name, entry):
                raise StorageError(
                    f"{name}, which rank {rank} has written into {folder}, is not there on rank 0's machine. Expected an "
                    "artifact folder that all machines share. Try: an artifact store such as S3, or the tracking server's"
                )
            parts[name] = (entry, size)
        return parts

    def end(self) -> None:
        """Let the other ranks know that this snapshot is not written again."""
        try:
            self._channel.share(None)
        except PeerLost as lost:
            log.debug("The other ranks are gone: %s", lost)

    def follow(self) -> None:
        """Write as often as rank 0 says; for the other ranks."""
        while (folder := self._channel.share()) is not None:
            self._channel.gather(self._answer(partial(self._write_beside, Path(folder))))

    def _write_beside(self, folder: Path) -> tuple[str, FileEntry, int]:
        wrong = nonfinite(_only(self._tree, self.own), self.own)
        if wrong:
            raise NonFiniteLoss(f"weights or optimizer state hold NaN or infinity: {shortened(wrong, 5)}.")
        return write_part(folder, self._channel.rank, self._pieces, self._weights)

    def _answer(self, write: Callable[[], Any]) -> tuple[Any, str, str | None]:
        try:
            return write(), "", None
        except Exception as error:  # noqa: BLE001 - all ranks hear of it
            return None, type(error).__name__, f"{error}"


def _only(tree: Any, names: Collection[str]) -> Any:
    """Return the tree of a state without the tensors that are not among these: rank 0 looks at those."""
    if isinstance(tree, list):
        return [_only(one, names) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get("$") in ("tensor", "view"):
        return tree if tree["$"] == "tensor" and tree["name"] in names else None
    return {key: _only(one, names) for key, one in tree.items()}


def _is_there(folder: Path, name: str, entry: FileEntry) -> bool:
    """Whether a part file, and the files that it lists, are in a folder as this machine sees it."""
    try:
        content = (folder / name).read_bytes()
        listed = Part.from_json(content, name).files
        sizes = [(folder / file).stat().st_size == one.size for file, one in listed.items()]
    except (OSError, DamagedCheckpoint):
        return False
    return all(sizes) and hashlib.sha256(content).hexdigest() == entry.sha256


def _owned(heard: list[dict[str, Box]], rank: int, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    mine = set()
    for name, shape in shapes.items():
        owners: dict[Box, int] = {}
        for other, boxes in enumerate(heard):
            if _numel(boxes[name][1]) or not _numel(shape):
                owners.setdefault(boxes[name], other)
        if sum(_numel(size) for _, size in owners) != _numel(shape):
            raise StateMismatch(
                f"all ranks: their pieces of {name} do not make up the whole tensor",
                advice="Expected each element on one rank, or the same pieces on several. Try: fully_shard and "
                "parallelize_module.",
            )
        if not _numel(shape):
            owners = {boxes_of: owner for boxes_of, owner in owners.items() if owner == 0}
        if rank in owners.values():
            mine.add(name)
    return mine


def _held_by_several(heard: list[dict[str, Box]]) -> set[str]:
    several = set()
    for name in heard[0]:
        there = [boxes[name] for boxes in heard if _numel(boxes[name][1])]
        if len(there) != len(set(there)):
            several.add(name)
    return several


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
