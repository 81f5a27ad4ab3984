"""Snapshots of a CUDA device: of the step boundary, whatever the device does while they are copied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mltrain
from mltrain.checkpoint.late_copy import LateCopy, LateState
from mltrain.checkpoint.policies import Latest
from mltrain.checkpoint.snapshot import HostBuffers, Snapshot, snapshot
from mltrain.testing import MemoryTracker, StopAt
from tests.support import tiny
from tests.support.equality import identical
from tests.support.runs import FolderRun

pytestmark = pytest.mark.gpu

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "one by one": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=False),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "capturable": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, capturable=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


class Large:
    """A quarter of a gigabyte of weights, with both moments. Its steps take no time to queue."""

    def __init__(self, optimizer: str = "foreach") -> None:
        torch.manual_seed(0)
        self.weights = [nn.Parameter(torch.randn(2**24, device="cuda")) for _ in range(4)]
        self.optimizer = OPTIMIZERS[optimizer](self.weights)
        self.buffers = HostBuffers()
        self.late = LateCopy([self.optimizer])
        for _ in range(2):
            self.step()
        snapshot(self.state, self.buffers)  # takes the memory, so that the next copies are only queued
        torch.cuda.synchronize()

    @property
    def state(self) -> dict[str, Any]:
        return {"model": dict(enumerate(self.weights)), "optimizer": self.optimizer.state_dict()}

    def step(self) -> None:
        for weight in self.weights:
            weight.grad = weight.detach() * 0.1
        self.optimizer.step()

    def kept(self) -> Snapshot:
        return snapshot(self.state, HostBuffers())


def busy(seconds: float = 0.05) -> None:
    """Keep the current stream busy."""
    torch.cuda._sleep(int(seconds * 1.5e9))


def equal(one: Snapshot, other: Snapshot) -> bool:
    return identical(dict(one.tensors), dict(other.tensors))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_are_queued_at_once_change_nothing_of_the_snapshot(optimizer: str) -> None:
    training = Large(optimizer)
    for _ in range(3):
        expected = training.kept()
        busy()
        late = snapshot(training.late.allow(training.state), training.buffers)
        assert late.pending_copies, "nothing is copied late"
        for _ in range(5):
            training.step()
        late.pending_copies.copy()
        assert not late.pending_copies.changed
        assert equal(late, expected)
        assert not equal(training.kept(), expected)


def test_the_host_does_not_wait_and_the_device_does() -> None:
    training = Large()
    expected = training.kept()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # a step on another stream than the one of the boundary
        late = snapshot(training.late.allow(training.state), training.buffers)
        queued = [end for _, end in late.pending_copies._queued._ends]
        assert not all(end.query() for end in queued), "the copies had ended before the call returned"
        training.step()
        assert not all(end.query() for end in queued), "the host waited for the copies"
    torch.cuda.synchronize()
    assert equal(late, expected)


def test_a_change_that_no_optimizer_made_is_noticed() -> None:
    training = Large()
    late = snapshot(training.late.allow(training.state), training.buffers)
    with torch.no_grad():
        training.weights[0].mul_(2)
    training.step()
    assert late.pending_copies.changed
    assert not snapshot(training.late.allow(training.state), training.buffers).pending_copies


def test_tensors_that_are_let_go_of_while_they_are_copied_are_still_read() -> None:
    training = Large()
    expected = training.kept()
    busy()
    late = snapshot(training.late.allow(training.state), training.buffers)
    training.optimizer.state.clear()
    reused = [torch.full((2**24,), 7.0, device="cuda") for _ in range(8)]
    late.pending_copies.copy()
    assert equal(late, expected)
    assert len(reused) == 8


def test_host_memory_is_page_locked_and_given_back() -> None:
    buffers = HostBuffers()
    weight = torch.ones(2**22, 9, device="cuda").t()
    kept = buffers.copy({"w": weight, "small": torch.ones(5, device="cuda"), "here": torch.ones(2**20)})
    assert [kept[name].is_pinned() for name in ("w", "small", "here")] == [True, True, False]
    assert kept["w"].stride() == weight.stride()
    assert kept["w"].equal(weight.cpu())
    before = locked()
    assert before > weight.nbytes / 1e3
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] < 2**20, "torch rounds up and gives nothing back"
    del kept, buffers
    assert locked() < before - 0.9 * weight.nbytes / 1e3


def locked() -> int:
    """Kilobytes of memory that this process holds."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1])


def trained(folder: Path, late: bool, **more: Any) -> dict[int, Any]:
    """Train on the device, save each step, return the states."""
    mltrain.rng.seed_everything(1)
    net: Any = nn.Sequential(nn.Linear(6, 512), nn.BatchNorm1d(512), nn.Dropout(0.2), nn.ReLU(), nn.Linear(512, 2))
    step = mltrain.Supervised(net, nn.CrossEntropyLoss(), OPTIMIZERS["fused"](net.parameters()), late_copy=late)
    config = tiny.Config(epochs=2, save_every_steps=1, device="cuda", **more)
    with FolderRun(folder).manager(policy=Latest(100)) as manager:
        task = mltrain.Task(step, mltrain.ResumableLoader(tiny.Noisy(64), 8))
        trainer = mltrain.Trainer(task, config, MemoryTracker(), manager, StopAt())
        list(trainer.steps())
        assert manager.wait(60)
        return {one.step: manager.peek(f"step:{one.step}") for one in manager.checkpoints()}


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_training_whose_checkpoints_are_copied_late_saves_what_it_would_at_once(amp: str, tmp_path: Path) -> None:
    at_once = trained(tmp_path / "at once", late=False, amp=amp)
    late = trained(tmp_path / "late", late=True, amp=amp)
    assert list(late) == list(at_once) == list(range(1, 17))
    assert [step for step, state in at_once.items() if not identical(late[step], state)] == []


def test_tensors_of_both_kinds_of_memory_are_copied_late() -> None:
    here, there = nn.Parameter(torch.ones(2**18)), nn.Parameter(torch.ones(2**18, device="cuda"))
    optimizer = torch.optim.SGD([here, there], lr=1.0, foreach=False)
    late = LateCopy([optimizer])
    here.grad, there.grad = torch.ones_like(here), torch.ones_like(there)
    copied = snapshot(LateState({"model": {"here": here, "there": there}}, late), HostBuffers())
    assert copied.pending_copies
    optimizer.step()
    copied.pending_copies.copy()
    assert all(bool((one == 1).all()) for one in copied.tensors.values())
    assert not here.any() and not there.any()
