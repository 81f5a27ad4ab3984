"""Models as they are used on CUDA devices: compiled, channels last, captured, spread over devices."""

from typing import Any

import pytest
import torch
from torch import nn

import mltrain
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from tests.support import tiny
from tests.support.equality import identical

pytestmark = pytest.mark.gpu


def trainer_of(step: Any, saver: MemorySaver, stop: int | None, config: tiny.Config) -> mltrain.Trainer:
    task, request = mltrain.Task(step, mltrain.ResumableLoader(tiny.Noisy(64), 8)), StopAt(stop)
    trainer = mltrain.Trainer(task, config, MemoryTracker(), saver, request)
    request.progress = trainer.progress
    return trainer


def resumed(make: Any, *, compiled_after: Any = None) -> tuple[Any, Any]:
    """Train without and with an interruption; return both last states."""
    config = tiny.Config(epochs=3, device="cuda", save_every_steps=1)
    whole, broken = MemorySaver(), MemorySaver()
    mltrain.rng.seed_everything(1)
    list(trainer_of(make(), whole, None, config).steps())
    for stop, built in ((5, make), (None, compiled_after or make)):
        mltrain.rng.seed_everything(1)
        trainer = trainer_of(built(), broken, stop, config)
        if broken.checkpoints:
            trainer.restore(broken.peek())  # type: ignore[arg-type]
        list(trainer.steps())
        assert trainer.progress.step == (stop or 24)
    return whole.peek(), broken.peek()


def supervised(net: nn.Module) -> mltrain.Supervised:
    return mltrain.Supervised(net, nn.CrossEntropyLoss(), torch.optim.AdamW(net.parameters(), lr=1e-2), late_copy=True)


def plain() -> mltrain.Supervised:
    return supervised(nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 2)))


@pytest.mark.filterwarnings("default")  # of the compiler
def test_a_compiled_model_resumes_exactly_and_goes_on_without_being_compiled() -> None:
    def compiled() -> mltrain.Supervised:
        net: Any = torch.compile(nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 2)))
        return supervised(net)

    whole, broken = resumed(compiled)
    assert identical(broken, whole)
    other, goes_on = resumed(compiled, compiled_after=plain)
    assert goes_on["progress"]["step"] == other["progress"]["step"] == 24
    assert {name.removeprefix("_orig_mod.") for name in other["model"]} == set(goes_on["model"])
    for name, tensor in goes_on["model"].items():
        torch.testing.assert_close(tensor, other["model"][f"_orig_mod.{name}"], rtol=1e-3, atol=1e-3)


def test_channels_last_is_kept_and_resumes_exactly() -> None:
    class Pictures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 64, 3, padding=1)
            self.last = nn.Conv2d(64, 2, 3, padding=1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            pictures = inputs[:, :3, None, None].expand(-1, -1, 8, 8).contiguous(memory_format=torch.channels_last)
            return self.last(self.first(pictures).relu()).mean((2, 3))

    def make() -> mltrain.Supervised:
        return supervised(Pictures().to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    whole, broken = resumed(make)
    assert identical(broken, whole)
    assert broken["model"]["first.weight"].is_contiguous(memory_format=torch.channels_last)


class Captured:
    """A whole step as one CUDA graph. The first three steps run without it."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 2)).cuda()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2, capturable=True)
        self.inputs, self.labels = torch.zeros(8, 6, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
        self.loss = torch.zeros((), device="cuda")
        self.graph: Any = None
        self.done = 0

    def parts(self) -> Any:
        return {"model": self.net, "optimizer": self.optimizer}

    def prepare(self, device: torch.device, amp: str) -> None:
        assert (device.type, amp) == ("cuda", "off")

    def once(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(self.net(self.inputs), self.labels)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def __call__(self, batch: Any) -> Any:
        self.inputs.copy_(batch[0])
        self.labels.copy_(batch[1])
        self.done += 1
        if self.done <= 3:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self.once()
            torch.cuda.current_stream().wait_stream(aside)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.once()
            self.graph.replay()
        return {"loss": self.loss}


def test_a_captured_step_is_saved_as_it_is_and_resumes_exactly() -> None:
    whole, broken = resumed(Captured)
    assert identical(broken, whole)


def test_a_model_on_two_kinds_of_memory_is_saved_and_comes_back_where_it_was() -> None:
    here, there = nn.Linear(6, 256), nn.Linear(256, 2).cuda()
    copied = snapshot({"model": {"here": here.weight, "there": there.weight}}, HostBuffers())
    assert copied.tensors["model.here"].equal(here.weight)
    assert copied.tensors["model.there"].equal(there.weight.cpu())

    class Mixed:
        def __init__(self) -> None:
            self.net = nn.ModuleDict({"here": nn.Linear(6, 256), "there": nn.Linear(256, 2).cuda()})
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)

        def parts(self) -> Any:
            return {"model": self.net, "optimizer": self.optimizer}

        def prepare(self, device: torch.device, amp: str) -> None:
            """It stays where it is."""

        def __call__(self, batch: Any) -> Any:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net["there"](self.net["here"](batch[0]).cuda()), batch[1].cuda())
            loss.backward()
            self.optimizer.step()
            return {"loss": loss.detach()}

    made: list[Mixed] = []

    def make() -> Mixed:
        made.append(Mixed())
        return made[-1]

    whole, broken = resumed(make)
    assert identical(broken, whole)
    assert [one.device.type for one in made[-1].net.parameters()] == ["cpu", "cpu", "cuda", "cuda"]
