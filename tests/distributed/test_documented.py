"""Executes the blocks of the page in one process. It stands for all ranks."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from mltrain.run.checkpoints import open_checkpoints
from mltrain.tracking.client import TrackingClient
from tests.support.pages import execute


@pytest.fixture
def eight() -> Iterator[None]:
    """A process group of eight with seven absent ranks. Collectives return at once."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


def test_the_block_on_two_kinds_of_sharding(eight: None) -> None:
    names: dict[str, Any] = {"net": Net(), "init_device_mesh": init_device_mesh, "fully_shard": fully_shard}
    names |= {
        "parallelize_module": parallelize_module,
        "ColwiseParallel": ColwiseParallel,
        "RowwiseParallel": RowwiseParallel,
    }
    mesh = execute("distributed", 0, names, cuda="cpu")["shard"]()
    assert (mesh.mesh_dim_names, mesh.size()) == (("batches",), 4)
    weight: Any = names["net"].up.weight
    assert weight.shape == torch.Size([8, 4])
    assert weight.to_local().numel() == 8 * 4 // 8, "each of eight has an eighth of it"


class Ray:
    """Stands for Ray, which is not installed: one worker, on this process, that is not restarted."""

    def __init__(self, reported: list[dict[str, float]]) -> None:
        self.train, self.torch, self.ray = (ModuleType(name) for name in ("ray.train", "ray.train.torch", "ray"))
        self.ray.train = self.train  # type: ignore[attr-defined]
        self.train.__dict__.update(
            get_context=lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1),
            report=reported.append,
            **dict.fromkeys(("ScalingConfig", "RunConfig", "FailureConfig"), SimpleNamespace),
        )
        self.torch.__dict__.update(TorchTrainer=self.trainer, prepare_model=DistributedDataParallel)

    def trainer(self, function: Callable[[Any], None], *, train_loop_config: Any, **others: Any) -> Any:
        assert others["scaling_config"].num_workers == 2
        return SimpleNamespace(fit=lambda: function(train_loop_config))


def test_the_block_on_ray(server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(reported := [])
    for module in (ray.ray, ray.train, ray.torch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        run_id = execute("distributed", 1, {"__name__": "__main__"})["run_id"]
    finally:
        dist.destroy_process_group()
    assert len(reported) == 5
    assert open_checkpoints(run_id).all()[-1].epoch == 5
    assert server.run(run_id).info.status == "FINISHED"
