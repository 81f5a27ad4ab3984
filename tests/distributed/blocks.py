"""A small model to shard, and its checkpoints below ``FOLDER``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mltrain
from mltrain.checkpoint.manifest import CheckpointId, Manifest, now
from mltrain.checkpoint.publishing import stage
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.worker import Worker
from mltrain.distributed.loading import verified, with_pieces, without_pieces
from mltrain.distributed.node import Destination
from mltrain.distributed.pieces import gathered
from mltrain.distributed.saving import Shards
from mltrain.distributed.uploads import Uploads
from mltrain.distributed.world import World
from mltrain.state import TrainState
from mltrain.store.local import LocalArtifacts
from mltrain.testing import differences

ID = CheckpointId(attempt=1, step=3)


class Blocks(nn.Module):
    """Blocks with a tied weight and sizes that divide unevenly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 6)
        self.tied = nn.Linear(width, 6)
        self.tied.weight = self.last.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden).tanh()
        hidden = self.norm(hidden)
        return self.last(hidden) + self.tied(hidden)  # type: ignore[no-any-return]


def task_of(net: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> mltrain.Task:
    data = torch.utils.data.TensorDataset(torch.zeros(8, 6), torch.zeros(8, 6))
    step = mltrain.Supervised(net, nn.MSELoss(), optimizer)
    return mltrain.Task(step, mltrain.ResumableLoader(data, 4), **more)


def built(seed: int, width: int = 5) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = Blocks(width)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1)


class Keeper:
    """A saver that stages a state and keeps a copy."""

    def __init__(self, name: str, parts: Mapping[str, Any]) -> None:
        self.store, self.disk, self.parts = store_of(name), Worker("disk"), parts
        self.failure: Exception | None = None

    def save(self, state: Any, **facts: Any) -> None:
        taken = snapshot(state, HostBuffers())
        draft = Manifest(
            run_id="r", id=ID, kind="step", epoch=0, parent=None, parts=tuple(state), files={}, created=now()
        )

        def job() -> None:
            try:
                stage(self.store, taken, draft, {})
            except Exception as error:  # noqa: BLE001 - the check looks at it
                self.failure = error
            finally:
                if taken.pieces is not None:
                    taken.pieces.end()

        self.disk.do(job)


def store_of(name: str) -> CheckpointStore:
    root = Path(os.environ["FOLDER"]) / name
    return CheckpointStore("r", LocalArtifacts(root), Spool(root / "checkpoints"))


def save(world: World, name: str, parts: Mapping[str, Any]) -> Exception | None:
    """Save a state in pieces; return the reason of a refusal. Rank 0 keeps a whole copy as well."""
    assert world.channel is not None or world.open_channel() is None
    whole = gathered(TrainState(dict(parts)).state_dict())
    keeper = Keeper(name, parts) if world.rank == 0 else None
    uploads = Uploads(world, lambda artifacts, ordinal: False, lambda staging, uri: None)
    shards = Shards(world, uploads)
    shards.save(TrainState(dict(parts)).state_dict(), keeper, {}, Destination(str(store_of(name).artifacts.local_root)))  # type: ignore[arg-type]
    shards.settle()
    if keeper is None:
        return None
    keeper.disk.wait()
    torch.save(whole, Path(os.environ["FOLDER"]) / f"{name}.pt")
    return keeper.failure


def restored(world: World, name: str, parts: dict[str, Any]) -> None:
    """Load the pieces; compare all tensors with the copy bitwise."""
    assert world.channel is not None or world.open_channel() is None
    store = store_of(name)
    manifest = store.manifest(ID)
    assert manifest is not None
    verified(world, lambda: store, manifest)
    found, _ = without_pieces(store, manifest)
    TrainState(parts).restore(with_pieces(found, parts, store.assembly(manifest), world.channel))  # type: ignore[arg-type]
    expected = torch.load(Path(os.environ["FOLDER"]) / f"{name}.pt", weights_only=True)
    again = gathered(TrainState(parts).state_dict())
    assert list(differences(dict(expected["model"]), dict(again["model"]))) == []
    assert list(differences(expected["optimizer"]["state"], again["optimizer"]["state"])) == []
    if world.rank == 0:
        alone = store.load(manifest)
        assert list(differences(expected["optimizer"]["state"], alone["optimizer"]["state"])) == []
        assert list(differences(dict(expected["model"]), dict(alone["model"]))) == []
    world.gather(None)
