"""Large tensors are copied during the next step, unchanged."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.checkpoint.late_copy import LateCopy, PendingCopies
from mltrain.checkpoint.policies import Latest
from mltrain.data import ResumableLoader
from mltrain.rng import seed_everything
from mltrain.steps import Supervised
from mltrain.task import Task
from mltrain.testing import MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny
from tests.support.equality import identical
from tests.support.late import WIDE, net
from tests.support.runs import FolderRun
from tests.support.waiting import eventually, let_pass

STEPS = 6


class Classifier(Supervised):
    """Batch norm changes its buffers in every forward."""

    def __init__(self) -> None:
        model = net(6, 2)
        super().__init__(model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters()), clip=1.0, late_copy=True)


class Adversarial:
    """Two networks and optimizers; the second optimizer steps much later."""

    late_copy = True

    def __init__(self) -> None:
        self.generator, self.discriminator = net(6, 6), net(6, 1)
        self.for_generator = torch.optim.Adam(self.generator.parameters())
        self.for_discriminator = torch.optim.SGD(self.discriminator.parameters(), lr=1e-2, momentum=0.9)

    def parts(self) -> Any:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "for_generator": self.for_generator,
            "for_discriminator": self.for_discriminator,
        }

    def __call__(self, batch: Any) -> Any:
        real = batch[0]
        self.for_discriminator.zero_grad()
        made = self.generator(torch.randn_like(real))
        loss = self.discriminator(made.detach()).sigmoid().mean() - self.discriminator(real).sigmoid().mean()
        loss.backward()
        self.for_discriminator.step()
        self.for_generator.zero_grad()
        (-self.discriminator(made).sigmoid().mean()).backward()
        self.for_generator.step()
        return {"loss": loss.detach()}


class Meddling(Classifier):
    """Changes a weight before the optimizer does, once."""

    def __call__(self, batch: Any) -> Any:
        if self.optimizer.state and not hasattr(self, "done"):
            self.done = True
            with torch.no_grad():
                self.model[3].weight.mul_(0.5)  # type: ignore[operator, union-attr, index]
        return super().__call__(batch)


class Watched:
    """Makes the disk's thread copy late: not before the next forward is through, or only when nobody else has done it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.forwards = self.late = self.by_training = 0
        self.never = False
        copy, takes = PendingCopies._copy_here, PendingCopies.takes

        def slow_copy(pending: PendingCopies) -> None:
            before = self.forwards
            if threading.current_thread().name.startswith("mltrain-disk"):
                eventually(lambda: not pending or not (self.never or self.forwards == before), "a forward", 30.0)
            else:
                self.by_training += bool(pending)
            copy(pending)

        def counted(pending: PendingCopies, buffer: torch.Tensor, tensor: torch.Tensor) -> bool:
            taken = takes(pending, buffer, tensor)
            self.late += taken
            return taken

        patch.setattr(PendingCopies, "_copy_here", slow_copy)
        patch.setattr(PendingCopies, "takes", counted)

    def count(self, *_: Any) -> None:
        self.forwards += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    yield Watched(monkeypatch)


def trained(make: Any, folder: Path, watched: Watched | None = None, *, late: bool, **more: Any) -> dict[int, Any]:
    """Train, save after every step, and return the saved states."""
    run = FolderRun(folder)
    seed_everything(1)
    step = make()
    step.late_copy = late
    for part in step.parts().values():
        if watched is not None and isinstance(part, nn.Module):
            part.register_forward_hook(watched.count)
    config = tiny.Config(epochs=1, save_every_steps=1)
    with run.manager(policy=Latest(100)) as manager:
        task = Task(step, more.get("loader") or ResumableLoader(tiny.Noisy(8 * STEPS), 8), more.get("evaluate"))
        trainer = Trainer(task, config, MemoryTracker(), manager, StopAt())
        for _ in trainer.steps():
            pass
        assert manager.wait(60)
        return {manifest.step: manager.peek(f"step:{manifest.step}") for manifest in manager.checkpoints()}


@pytest.mark.parametrize("make", [Classifier, Adversarial])
def test_what_is_copied_late_is_the_state_of_the_boundary(make: Any, tmp_path: Path, watched: Watched) -> None:
    at_once = trained(make, tmp_path / "at once", watched, late=False)
    assert watched.late == 0
    late = trained(make, tmp_path / "late", watched, late=True)
    assert watched.late >= 2 * (STEPS - 1), "weights and moments of all but the last checkpoint"
    assert list(late) == list(range(1, STEPS + 1))
    for step, state in at_once.items():
        assert identical(late[step], state), f"the checkpoint of step {step}"


def test_an_optimizer_that_comes_first_copies_itself(tmp_path: Path, watched: Watched) -> None:
    at_once = trained(Classifier, tmp_path / "at once", watched, late=False)
    watched.never = True
    late = trained(Classifier, tmp_path / "late", watched, late=True)
    assert watched.by_training == STEPS
    assert all(identical(late[step], state) for step, state in at_once.items())


def test_a_change_that_no_optimizer_made_costs_one_checkpoint_and_the_late_copy(
    tmp_path: Path, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(Meddling, tmp_path / "at once", watched, late=False)
    found = trained(Meddling, tmp_path / "late", watched, late=True)
    assert list(found) == [2, 3, 4, 5, 6]
    assert all(identical(state, expected[step]) for step, state in found.items())
    assert caplog.text.count("would mix two steps") == 1


class Renormed(Classifier):
    """Its forward changes weights in place, and takes long to."""

    def __init__(self) -> None:
        model = nn.Sequential(nn.Embedding(20_000, 64, max_norm=1.0), nn.Flatten(), nn.Linear(6 * 64, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Supervised.__init__(self, model, nn.CrossEntropyLoss(), optimizer, late_copy=True)

    def __call__(self, batch: Any) -> Any:
        inputs = (batch[0].abs() * 1e4).long() % 20_000
        with torch.no_grad():
            self.model[0](torch.arange(20_000))  # type: ignore[operator, index]
        return super().__call__((inputs, batch[1]))


def test_a_change_in_place_is_noticed_also_while_it_is_under_way(tmp_path: Path) -> None:
    expected = trained(Renormed, tmp_path / "at once", late=False)
    for number in range(4):
        found = trained(Renormed, tmp_path / str(number), late=True)
        assert [step for step, state in found.items() if not identical(state, expected[step])] == []


class Fused(Classifier):
    """A second optimizer, outside the state, changes the same parameters. It does not count its changes."""

    def __init__(self) -> None:
        super().__init__()
        self.other = torch.optim.SGD(self.model.parameters(), lr=1e-2, fused=True)

    def __call__(self, batch: Any) -> Any:
        self.other.zero_grad()
        self.loss(self.model(batch[0]), batch[1]).backward()
        self.other.step()
        return super().__call__(batch)


@pytest.mark.parametrize("make", [Classifier, Adversarial, Fused])
def test_no_timing_makes_a_difference(make: Any, tmp_path: Path) -> None:
    expected = trained(make, tmp_path / "at once", late=False)
    for number in range(3):
        found = trained(make, tmp_path / str(number), late=True)
        assert list(found) == list(expected)
        assert all(identical(state, expected[step]) for step, state in found.items())


def test_an_evaluation_may_swap_weights(tmp_path: Path, watched: Watched) -> None:
    made: list[Classifier] = []

    def make() -> Classifier:
        made.append(Classifier())
        return made[-1]

    def evaluate() -> dict[str, float]:
        watched.forwards += 1
        weight = made[-1].model[3].weight  # type: ignore[operator, union-attr, index]
        kept = weight.data.clone()
        weight.data.zero_()
        let_pass(0.05)
        weight.data.copy_(kept)
        return {"val/loss": 0.0}

    class Endless:
        """A loader that cannot say when an epoch is over."""

        def __init__(self) -> None:
            self._inner = ResumableLoader(tiny.Noisy(8 * STEPS), 8)
            self.state_dict, self.load_state_dict = self._inner.state_dict, self._inner.load_state_dict

        def __iter__(self) -> Iterator[Any]:
            return iter(self._inner)

    expected = trained(make, tmp_path / "at once", watched, late=False, loader=Endless(), evaluate=evaluate)
    found = trained(make, tmp_path / "late", watched, late=True, loader=Endless(), evaluate=evaluate)
    assert list(found) == list(expected)
    assert all(identical(state, expected[step]) for step, state in found.items())


def test_what_was_saved_when_the_loop_was_left_is_kept(tmp_path: Path) -> None:
    seed_everything(1)
    run, step = FolderRun(tmp_path), Classifier()
    with run.manager() as manager:
        task = Task(step, ResumableLoader(tiny.Noisy(16), 8))
        trainer = Trainer(task, tiny.Config(epochs=9, save_every_steps=1), MemoryTracker(), manager, StopAt())
        for progress in trainer.steps():
            if progress.step == 5:
                break
        weight = step.model[3].weight  # type: ignore[operator, union-attr, index]
        saved = weight.clone()
        weight.data.zero_()
        assert manager.wait(60)
        kept = manager.peek()
    assert kept is not None
    assert kept["progress"]["step"] == 5
    assert torch.equal(kept["model"]["3.weight"], saved)


def test_a_copy_that_fails_costs_its_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weight = nn.Parameter(torch.zeros(128, WIDE))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones_like(weight)
    late, begin = LateCopy([optimizer]), LateCopy.begin

    def broken(late: LateCopy) -> PendingCopies:
        pending = begin(late)
        pending._pairs.append((torch.zeros(2), torch.zeros(3)))
        return pending

    with FolderRun(tmp_path).manager() as manager:
        with monkeypatch.context() as patch:
            patch.setattr(LateCopy, "begin", broken)
            manager.save(late.allow({"model": {"weight": weight}}), step=1)
            optimizer.step()
            manager.wait(60)
        assert "RuntimeError: The size of tensor" in caplog.text
        manager.save(late.allow({"model": {"weight": weight}}), step=2)
        optimizer.step()
        assert manager.wait(60)
        assert [manifest.step for manifest in manager.checkpoints()] == [2]


def test_a_state_is_put_back_only_when_the_copy_is_complete(tmp_path: Path, watched: Watched) -> None:
    seed_everything(1)
    run, step = FolderRun(tmp_path), Classifier()
    with run.manager() as manager:
        task = Task(step, ResumableLoader(tiny.Noisy(16), 8))
        trainer = Trainer(task, tiny.Config(epochs=9), MemoryTracker(), manager, StopAt())
        next(trainer.steps())
        blank = {name: {**part} for name, part in trainer.state.state_dict().items()}
        blank["model"] = {name: torch.zeros_like(tensor) for name, tensor in blank["model"].items()}
        saved = step.model[3].weight.clone()  # type: ignore[operator, union-attr, index]
        trainer.save("step")
        trainer.restore(blank)
        assert manager.wait(60)
        kept = manager.peek("step:1")
    assert kept is not None
    assert torch.equal(kept["model"]["3.weight"], saved)
