"""Saving the state of all ranks.

Rank 0 saves the common state, every rank its pieces of sharded tensors.
"""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from mltrain.checkpoint.flat_tensors import is_sharded
from mltrain.checkpoint.pytree import flatten
from mltrain.checkpoint.shards import Piece
from mltrain.checkpoint.snapshot import HostBuffers, ShardedState, weights_of
from mltrain.checkpoint.worker import Worker
from mltrain.distributed.node import Destination
from mltrain.distributed.parts import FollowerPieces, LeaderPieces
from mltrain.distributed.pieces import box, gathered, has_sharded
from mltrain.distributed.replicas import digest, own_parts
from mltrain.distributed.uploads import PeerUploads, Uploads
from mltrain.distributed.world import World
from mltrain.errors import StateMismatch, shortened
from mltrain.trainer.ports import Saver
from mltrain.trainer.ranks import with_own_parts

Box = tuple[tuple[int, ...], tuple[int, ...]]


class DistributedSaver:
    """Saves the state of all ranks; rank 0 commits it.

    Args:
        world: the ranks.
        trained: name to part of the task.
        saver: saves the state on rank 0; ``None`` on other ranks.
        uploads: of this rank to a remote artifact store; ``None`` on rank 0.
    """

    def __init__(
        self, world: World, trained: Mapping[str, Any], saver: Saver | None, uploads: Uploads | None = None
    ) -> None:
        self._world = world
        self._trained = trained
        self._saver: Any = saver
        self._shards = Shards(world, uploads)

    def save(self, state: Mapping[str, Any], **facts: Any) -> None:
        """Compare the ranks' states, and save with all rank-local parts."""
        own = own_parts(self._world, state, self._trained)
        if has_sharded(state):
            destination = self._world.share(self._destination())
            if destination is not None:
                self._shards.save(with_own_parts(state, own), self._saver, facts, destination)
                return
        state = {name: gathered(part) if has_sharded(part) else part for name, part in state.items()}
        if self._saver is not None:
            self._saver.save(with_own_parts(state, own), **facts)

    def _destination(self) -> Destination | None:
        """Return the destination of rank 0's checkpoints.

        Returns ``None`` if other ranks cannot reach it, or before the run is created.
        """
        return Destination.of(self._saver.store) if hasattr(self._saver, "store") else None

    def settle(self) -> None:
        """Wait until this rank has written or abandoned its pieces."""
        self._shards.settle()

    def peek(self) -> Mapping[str, Any] | None:
        """On rank 0, return the newest checkpoint, otherwise ``None``."""
        kept: Mapping[str, Any] | None = self._saver.peek() if self._saver is not None else None
        return kept

    @property
    def failure(self) -> Any:
        """Why rank 0 did not save the newest state; ``None`` on other ranks."""
        return self._saver.failure if self._saver is not None else None


class Shards:
    """Copies a rank's pieces of sharded tensors, and writes them.

    All ranks copy at the same step, and write in the background.

    Rank 0's committer decides when and where they are written, and tells the other ranks through the channel.

    Args:
        world: the ranks, with their channel for messages in the background.
        uploads: of this rank to a remote artifact store; ``None`` on rank 0.

    Attributes:
        peer_uploads: the uploads that rank 0 waits for before it commits to such a store.
    """

    def __init__(self, world: World, uploads: Uploads | None) -> None:
        assert world.channel is not None
        self.peer_uploads = PeerUploads(world)
        self._uploads = uploads
        self._world = world
        self._channel = world.channel
        self._disk = Worker("mltrain-shards")
        self._buffers = HostBuffers()
        self._boxes: dict[str, Box] | None = None
        self._mine: frozenset[str] = frozenset()
        self._taken = False

    def save(
        self, state: Mapping[str, Any], saver: Saver | None, facts: Mapping[str, Any], destination: Destination
    ) -> None:
        """Copy this rank's pieces of a state; rank 0 saves it."""
        flat = flatten(state, weights_of(state), sharded=True)
        self._plan({name: tensor for name, tensor in flat.tensors.items() if is_sharded(tensor)})
        if saver is not None:
            self._taken = False
            saver.save(ShardedState(state, partial(self._take, destination)), **facts)
            self._world.share(self._taken)
            return
        self.settle()
        copied = self._copied(flat.tensors, weights_of(state), flat.tree, destination)
        assert self._uploads is not None
        following = FollowerPieces(*copied, uploads=self._uploads)
        if self._world.share():
            self._disk.do(following.follow)

    def settle(self) -> None:
        """Wait until this rank has written or abandoned its pieces."""
        self._disk.wait()

    def _take(self, destination: Destination, tensors: Mapping[str, Tensor], weights: str | None) -> LeaderPieces:
        self._taken = True
        return LeaderPieces(*self._copied(tensors, weights, None, destination), peer_uploads=self.peer_uploads)

    def _copied(
        self, tensors: Mapping[str, Any], weights: str | None, tree: Any, destination: Destination
    ) -> tuple[Any, ...]:
        """Copy this rank's pieces, and return the arguments of :class:`mltrain.distributed.parts.RankPieces`."""
        local = {name: tensors[name].to_local().detach() for name in self._mine}
        copies = self._buffers.copy(local)
        assert self._boxes is not None
        pieces = {
            name: Piece(copies[name], self._boxes[name][0], tuple(tensors[name].shape)) for name in sorted(self._mine)
        }
        empty = {n: torch.empty(0, dtype=tensors[n].dtype) for n in self._boxes if n not in pieces}
        held = {**empty, **{name: piece.tensor for name, piece in pieces.items()}}
        return self._channel, pieces, held, weights, tree, destination

    def _plan(self, tensors: Mapping[str, Any]) -> None:
        """Plan this rank's pieces; the lowest rank writes shared ones.

        Raises:
            StateMismatch: a piece differs between the ranks that hold it, or the pieces do not make up a tensor.
        """
        boxes = {name: box(tensor) for name, tensor in tensors.items()}
        if not all(self._world.gather(boxes == self._boxes)):
            self._boxes, held = boxes, self._world.gather(boxes)
            self._mine = frozenset(_owned(held, self._world.rank, {n: tuple(t.shape) for n, t in tensors.items()}))
            self._several = sorted(_held_by_several(held))
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
                advice="Expected ranks that train the same batches to compute the same. Try: resume from the last checkpoint "
                "with a step that draws the same random numbers on them.",
            )


def _owned(held: list[dict[str, Box]], rank: int, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    mine = set()
    for name, shape in shapes.items():
        owners: dict[Box, int] = {}
        for other, boxes in enumerate(held):
            if prod(boxes[name][1]) or not prod(shape):
                owners.setdefault(boxes[name], other)
        if sum(prod(size) for _, size in owners) != prod(shape):
            raise StateMismatch(
                f"all ranks: their pieces of {name} do not make up the whole tensor",
                advice="Expected each element on one rank, or the same pieces on several. Try: fully_shard and "
                "parallelize_module.",
            )
        if not prod(shape):
            owners = {boxes_of: owner for boxes_of, owner in owners.items() if owner == 0}
        if rank in owners.values():
            mine.add(name)
    return mine


def _held_by_several(held: list[dict[str, Box]]) -> set[str]:
    several = set()
    for name in held[0]:
        there = [boxes[name] for boxes in held if prod(boxes[name][1])]
        if len(there) != len(set(there)):
            several.add(name)
    return several
