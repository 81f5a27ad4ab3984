"""Loading a sharded checkpoint on several ranks: each verifies its share, then reads its pieces.

torch.distributed.checkpoint (DCP) plans which saved pieces make up the wanted ones, for any numbers of ranks.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_planned
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.reader import Configured, configured
from mltrain.checkpoint.shards import Assembly
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.tensor_file import read_tensors
from mltrain.distributed.pieces import box, filled, sharded_like, targets
from mltrain.distributed.world import Channel, World
from mltrain.errors import DamagedCheckpoint, MltrainError


class ShardReader(StorageReader):
    """Reads verified pieces of a sharded checkpoint for DCP.

    Args:
        assembly: of the checkpoint.
    """

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._where = {
            MetadataIndex(name, torch.Size(piece.offsets or ())): (part, piece.file)
            for part in assembly.parts
            for name, piece in part.pieces.items()
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: one reader reads one checkpoint."""

    def read_metadata(self) -> Metadata:  # with **kwargs DCP would call it twice
        """Return the tensors of the checkpoint and their pieces."""
        tensors: dict[str, Any] = {}
        for name, whole in self._assembly.tensors.items():
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype=whole.dtype), whole.shape, [])
        for part in self._assembly.parts:
            for name, piece in part.pieces.items():
                place = torch.Size(piece.offsets or ()), torch.Size(piece.shape)
                tensors[name].chunks.append(ChunkStorageMetadata(*place))
        return Metadata(tensors)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the part files are read already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read a plan's items with one file in memory.

        Raises:
            DamagedCheckpoint: a file is missing, or differs from what was committed.
        """
        wanted = defaultdict(list)
        for item in plan.items:
            assert item.type == LoadItemType.TENSOR
            part, file = self._where[MetadataIndex(item.storage_index.fqn, item.storage_index.offset)]
            wanted[part.rank, file].append((part, item))
        for (_, file), items in sorted(wanted.items(), key=lambda entry: entry[0]):
            part = items[0][0]
            tensors = read_tensors(self._assembly.read(file, part.files[file]), file)
            for _, item in items:
                place = zip(item.storage_offsets, item.lengths, strict=True)
                found = tensors[part.key(item.storage_index.fqn)][tuple(slice(at, at + size) for at, size in place)]
                target = planner.resolve_tensor(item).detach()
                target.copy_(found)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return True: the reader needs no id."""
        return True


def load(tensors: Mapping[str, Tensor], assembly: Assembly, channel: Channel) -> None:
    """Fill tensors, whole or sharded, from a checkpoint; on all ranks at once.

    Args:
        tensors: by their names in the checkpoint.
        assembly: of the checkpoint.
        channel: of the ranks.

    Raises:
        DamagedCheckpoint: on all ranks, if a file that any of them needs differs from what was committed.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        load_planned(
            dict(tensors),
            storage_reader=ShardReader(assembly),
            planner=planner,
            process_group=channel.group,
        )
    except CheckpointException as error:  # a BaseException
        rank, (first, _) = next(iter(error.failures.items()))
        raise DamagedCheckpoint(f"Rank {rank} could not load: {first}") from error
    finally:
        assembly.release()


def verified(world: World, opened: Callable[[], CheckpointStore], manifest: Manifest) -> None:
    """Verify a checkpoint's files, each on one of the ranks.

    If as many ranks wrote it, each reads the files of its own pieces, and those from a remote store stay in memory for the
    load, so no file is downloaded twice.

    Args:
        world: the ranks.
        opened: returns the store that has the checkpoint.
        manifest: of the checkpoint.

    Raises:
        DamagedCheckpoint: on all ranks, if a file is missing or differs from what was committed.
    """
    failure: str | None = None
    try:
        store = opened()
        assembly = store.assembly(manifest)
        numbered = ((n, part.rank, name) for part in assembly.parts for n, name in enumerate(sorted(part.files)))
        files = assembly.files()
        read = assembly.read if store.artifacts.local_root is not None else assembly.hold
        for number, (_, _, name) in enumerate(sorted(numbered)):
            if number % world.size == world.rank:
                read(name, files[name])
    except (MltrainError, OSError) as error:
        failure = f"{error}"
    for rank, why in enumerate(world.gather(failure)):
        if why is not None:
            raise DamagedCheckpoint(why if rank == 0 else f"{why} (rank {rank})")


def without_pieces(store: CheckpointStore, manifest: Manifest) -> Configured:
    """Return parts and configuration, with placeholders for sharded tensors.

    Raises:
        DamagedCheckpoint: a file differs from what was committed.
    """
    return configured(store, manifest, absent=store.assembly(manifest).tensors)


def with_pieces(
    parts: Mapping[str, Any], trained: Mapping[str, Any], assembly: Assembly, channel: Channel
) -> dict[str, Any]:
    """Return the parts of :func:`without_pieces` with this rank's pieces loaded.

    All ranks call this at once. A tensor is sharded like the one of the training that it restores.

    Args:
        parts: name to state, with placeholders.
        trained: name to part of the training.
        assembly: of the checkpoint.
        channel: of the ranks.

    Raises:
        DamagedCheckpoint: on all ranks, if a file that any of them needs differs from what was committed.
    """
    like = {id(absent): target for absent, target in targets(parts, trained)}
    tensors: dict[str, Tensor] = {}
    for name, absent in assembly.tensors.items():
        target = like.get(id(absent))
        if target is None:
            tensors[name] = torch.empty(absent.shape, dtype=absent.dtype)
        else:
            tensors[name] = sharded_like(torch.empty(box(target)[1], dtype=absent.dtype, device=target.device), target)
    load(tensors, assembly, channel)
    new = {id(absent): tensors[name] for name, absent in assembly.tensors.items()}
    return {name: filled(part, new) for name, part in parts.items()}
