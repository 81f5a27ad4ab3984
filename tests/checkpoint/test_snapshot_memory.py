"""Host memory for snapshots: used again, taken before the first copy, page-locked for devices, never in the way."""

import gc
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.checkpoint.policies import Latest
from mltrain.checkpoint.snapshot import LARGE, HostBuffers, page_locked
from mltrain.errors import UnsupportedValue
from mltrain.manager import CheckpointManager
from mltrain.testing import MemorySaver
from mltrain.trainer.loop import Trainer
from tests.support import tiny
from tests.support.fake_cuda import Cuda, OnCuda, OnSecond
from tests.support.runs import FolderRun

PAGES = 4096
"""So many pages a tensor has that the tests look at."""


def faults() -> int:
    """Return the number of page faults of this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def large() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(PAGES * 1024), "b": torch.ones(PAGES * 512, dtype=torch.float64).view(64, -1).t()}


def test_host_memory_is_used_again_from_one_snapshot_to_the_next() -> None:
    buffers = HostBuffers()
    first = buffers.copy({"w": torch.ones(8)})["w"].data_ptr()
    second = buffers.copy({"w": torch.zeros(8)})
    assert second["w"].data_ptr() == first
    assert not second["w"].any()
    assert buffers.copy({"w": torch.zeros(9)})["w"].shape == (9,)
    assert buffers.copy({"w": torch.zeros(9, dtype=torch.float64)})["w"].dtype is torch.float64


def test_a_snapshot_waits_for_every_device_that_it_copied_from() -> None:
    cuda = Cuda()
    one, two, here = torch.ones(2).as_subclass(OnCuda), torch.ones(2).as_subclass(OnSecond), torch.ones(2)
    buffers = HostBuffers(cuda, pin=False)
    buffers.copy({"here": here})
    assert cuda.waited == []
    buffers.copy({"two": two, "here": here})
    assert cuda.waited == [torch.device("cuda:1")]
    cuda.waited.clear()
    buffers.copy({"one": one, "two": two, "again": two})
    assert sorted(cuda.waited, key=str) == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_prepared_memory_is_mapped_when_the_first_copy_comes() -> None:
    live = large()
    unprepared, prepared = HostBuffers(), HostBuffers()
    prepared.prepare(live)
    prepared._preparing.join()  # type: ignore[union-attr]
    before = faults()
    copied = prepared.copy(live)
    between = faults()
    unprepared.copy(live)
    assert between - before < PAGES / 8
    if not huge_pages():
        assert faults() - between > PAGES  # else this test shows nothing
    assert all(torch.equal(copied[name], live[name]) for name in live)
    assert copied["b"].stride() == live["b"].stride()


def huge_pages() -> bool:
    """Whether the system maps fresh memory in large pieces."""
    try:
        with Path("/sys/kernel/mm/transparent_hugepage/enabled").open() as file:
            return "[always]" in file.read()
    except OSError:
        return True


def test_a_copy_that_comes_early_waits_for_one_tensor_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    first, go_on = threading.Event(), threading.Event()

    class Slow(HostBuffers):
        def _taken_like(self, tensor: torch.Tensor, on_cuda: bool) -> torch.Tensor:
            if threading.current_thread() is self._preparing:
                taken.append(tensor.shape)
                first.set()
                assert go_on.wait(30)
            return super()._taken_like(tensor, on_cuda)

    live = {str(n): torch.full((n + 1,), float(n)) for n in range(50)}
    buffers = Slow()
    buffers.prepare(live)
    assert first.wait(30)
    enough = buffers._enough
    threading.Thread(target=lambda: enough.wait(30) and go_on.set()).start()
    copied = buffers.copy(live)
    assert len(taken) == 1
    assert all(torch.equal(copied[name], live[name]) for name in live)


def test_preparing_twice_or_after_a_copy_takes_nothing_more() -> None:
    buffers = HostBuffers()
    kept = buffers.copy({"w": torch.ones(8)})["w"].data_ptr()
    buffers.prepare({"w": torch.ones(8)})
    assert buffers._preparing is None
    assert buffers.copy({"w": torch.zeros(8)})["w"].data_ptr() == kept


def test_a_copy_of_other_shapes_than_prepared_is_right() -> None:
    buffers = HostBuffers()
    buffers.prepare({"w": torch.ones(8), "gone": torch.ones(3)})
    copied = buffers.copy({"w": torch.ones(9), "new": torch.ones((), dtype=torch.int64)})
    assert {name: tuple(tensor.shape) for name, tensor in copied.items()} == {"w": (9,), "new": ()}
    assert copied["w"].all()


class Counting(MemorySaver):
    """Notes which parts it is to prepare for."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[tuple[int, bool]] = []

    def prepare(self, state: Any) -> None:
        self.prepared.append((state["progress"]["step"], bool(state["optimizer"]["state"])))


def test_a_trainer_prepares_once_after_its_first_step_when_the_optimizer_has_its_state() -> None:
    saver = Counting()
    config = tiny.Config(epochs=2, save_every_steps=4)
    trainer = Trainer(tiny.build(config), config, saver=saver)
    list(trainer.steps())
    assert saver.prepared == [(1, True)]


def test_a_manager_prepares_and_refuses_what_it_could_not_save(tmp_path: Any) -> None:
    with CheckpointManager(FolderRun(tmp_path), policy=Latest(1)) as manager:
        with pytest.raises(UnsupportedValue, match="x"):
            manager.prepare({"model": {"w": torch.ones(2)}, "x": object()})
        model = nn.Linear(3, 2)
        manager.prepare({"model": model.state_dict()})
        manager.save({"model": model.state_dict()}, step=1)
        loaded = manager.load()
    assert loaded is not None
    assert torch.equal(loaded["model"]["weight"], model.weight)


@pytest.mark.parametrize("refuses", [False, True])
def test_memory_is_registered_while_it_is_held(refuses: bool) -> None:
    cuda = Cuda()
    cuda.driver.refuses = refuses
    like = torch.empty(3, LARGE, dtype=torch.float16).t()
    memory = page_locked(like, cuda)
    assert (memory.dtype, memory.shape, memory.stride()) == (like.dtype, like.shape, like.stride())
    assert memory.untyped_storage().nbytes() == like.nbytes
    assert not memory.storage_offset()
    view = memory.copy_(torch.ones_like(like))[1:]
    del memory
    gc.collect()
    assert len(cuda.driver.registered) == (not refuses)
    assert all(size % 4096 == address % 4096 == 0 for address, size in cuda.driver.registered.items())
    assert view.all()
    del view
    gc.collect()
    assert cuda.driver.registered == {}


def test_only_memory_for_tensors_of_a_device_is_page_locked() -> None:
    cuda = Cuda()
    buffers = HostBuffers(cuda, pin=True)
    here, there = torch.ones(LARGE), torch.ones(LARGE).as_subclass(OnCuda)
    assert buffers.copy({"here": here})["here"].all()
    assert cuda.driver.registered == {}
    kept = buffers.copy({"there": there})
    assert kept["there"].all()
    assert len(cuda.driver.registered) == 1
    del kept, buffers
    gc.collect()
    assert cuda.driver.registered == {}


def test_memory_is_page_locked_before_the_first_copy() -> None:
    cuda = Cuda()
    buffers = HostBuffers(cuda, pin=True)
    live = {"here": torch.ones(LARGE), "there": torch.ones(LARGE).as_subclass(OnCuda)}
    buffers.prepare(live)
    buffers._preparing.join()  # type: ignore[union-attr]
    (address,) = cuda.driver.registered
    assert buffers.copy(live)["there"].data_ptr() == address
