"""The public assertions find faults and pass correct trainings."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchdata.stateful_dataloader import StatefulDataLoader

import mltrain
from mltrain.project import Project
from mltrain.testing import assert_resumes_exactly
from tests.support import tiny


def project(build: Any = tiny.build, config: Any = tiny.Config) -> Project:
    return Project("tiny", config, build, Path(tiny.__file__))


class Drifting:
    """A step with a hidden state that it never saves."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.drift = 0.0

    def parts(self) -> Any:
        return self.inner.parts()

    def prepare(self, device: torch.device, amp: str) -> None:
        self.inner.prepare(device, amp)

    def __call__(self, batch: Any) -> Any:
        self.drift += 1.0
        return {**self.inner(batch), "drift": self.drift}


def test_a_training_that_resumes_exactly_passes() -> None:
    assert_resumes_exactly(project(), {"epochs": 3})


def test_a_loss_that_learns_resumes_exactly() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(output * self.scale, target)

    def build(config: tiny.Config) -> mltrain.Task:
        net, loss = nn.Linear(3, 2), Weighted()
        inputs = torch.randn(24, 3)
        data = torch.utils.data.TensorDataset(inputs, (inputs.sum(1) > 0).long())
        optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.5, momentum=0.9)
        return mltrain.Task(mltrain.Supervised(net, loss, optimizer), mltrain.ResumableLoader(data, 4))

    assert_resumes_exactly(project(build), {"epochs": 2})


@pytest.mark.parametrize("steps", [(1, 2, 3), (2, 5, 7, 11), (6, 12)])
def test_it_may_be_interrupted_any_number_of_times(steps: tuple[int, ...]) -> None:
    assert_resumes_exactly(project(), {"epochs": 3}, interrupt_at=steps)


def test_what_a_step_keeps_to_itself_is_found_at_the_first_step_that_differs() -> None:
    def build(config: tiny.Config) -> mltrain.Task:
        task = tiny.build(config)
        return mltrain.Task(Drifting(task.step), task.loader)

    with pytest.raises(AssertionError, match=r"step/drift at step 5: 1\.0 instead of 5\.0"):
        assert_resumes_exactly(project(build), {"epochs": 2}, interrupt_at=[4])


def test_random_numbers_from_a_generator_of_its_own_are_found() -> None:
    def build(config: tiny.Config) -> mltrain.Task:
        task, own = tiny.build(config), random.Random(3)
        step = task.step

        class Drawing(Drifting):
            def __call__(self, batch: Any) -> Any:
                return {**self.inner(batch), "own": own.random()}

        return mltrain.Task(Drawing(step), task.loader)

    with pytest.raises(AssertionError, match="step/own"):
        assert_resumes_exactly(project(build), {"epochs": 2})


def test_a_draw_that_only_a_new_process_makes_is_found_where_nothing_else_is_drawn() -> None:
    class Warm(Drifting):
        warm = False

        def __call__(self, batch: Any) -> Any:
            if not self.warm:
                random.random()
                self.warm = True
            return self.inner(batch)

    def build(config: tiny.Config) -> mltrain.Task:
        net = nn.Linear(6, 2)
        inner = mltrain.Supervised(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1))
        return mltrain.Task(Warm(inner), mltrain.ResumableLoader(tiny.Noisy(40), 8))

    with pytest.raises(AssertionError, match="testing/draws at step 4"):
        assert_resumes_exactly(project(build), {"epochs": 2}, interrupt_at=[3])


def test_a_part_left_out_of_the_state_is_named() -> None:
    def build(config: tiny.Config) -> mltrain.Task:
        task = tiny.build(config)

        class Forgetful(tiny.Faulty):
            def parts(self) -> Any:
                return {name: part for name, part in super().parts().items() if name != "optimizer"}

        return mltrain.Task(Forgetful(task.step.inner, config), task.loader)  # type: ignore[attr-defined]

    with pytest.raises(AssertionError, match=r"model\."):
        assert_resumes_exactly(project(build), {"epochs": 2}, interrupt_at=[4])


def test_steps_that_the_training_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="a training of 6 steps"):
        assert_resumes_exactly(project(), {"epochs": 1}, interrupt_at=[6])


class Numbers(torch.utils.data.IterableDataset[Any]):
    """A stream of 20 tiny samples that knows its position."""

    def __init__(self) -> None:
        self.samples = tiny.Noisy(20)
        self.position = 0

    def __iter__(self) -> Any:
        while self.position < 20:
            self.position += 1
            yield self.samples[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def stream(config: tiny.Config) -> Any:
    return mltrain.StreamLoader(Numbers(), 8)


def weighted(config: tiny.Config) -> Any:
    return mltrain.ResumableLoader(tiny.Noisy(20), 8, weights=[1.0, 2.0] * 10)


def incomplete_left_out(config: tiny.Config) -> Any:
    return mltrain.ResumableLoader(tiny.Noisy(20), 8, drop_last=True, shuffle=False)


def seeded_samples(config: tiny.Config) -> Any:
    return mltrain.ResumableLoader(tiny.Noisy(20), 8, seed_samples=True)


def foreign(config: tiny.Config) -> Any:
    return StatefulDataLoader(Numbers().samples, batch_size=8, shuffle=True)


def foreign_stream(config: tiny.Config) -> Any:
    return StatefulDataLoader(Numbers(), batch_size=8)


@pytest.mark.parametrize("loader", [stream, weighted, incomplete_left_out, seeded_samples, foreign, foreign_stream])
@pytest.mark.parametrize("interrupt_at", [(1, 2), (3, 4, 5)])
def test_every_kind_of_loader_resumes_exactly(loader: Any, interrupt_at: tuple[int, ...]) -> None:
    def build(config: tiny.Config) -> mltrain.Task:
        task = tiny.build(config)
        return mltrain.Task(task.step, loader(config), task.evaluate)

    assert_resumes_exactly(project(build), {"epochs": 3, "batch_size": 8}, interrupt_at=interrupt_at)


def test_accumulated_gradients_and_averaged_weights_and_a_gradient_scaler_resume_exactly() -> None:
    class Scaled:
        """A step of one's own: loss scaling, micro-batches, and weights averaged over the steps."""

        def __init__(self, config: tiny.Config) -> None:
            self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

        def parts(self) -> Any:
            names = ("model", "optimizer", "scaler", "average")
            return {name: getattr(self, name) for name in names}

        def __call__(self, batch: Any) -> Any:
            self.optimizer.zero_grad()
            for inputs, labels in zip(*(part.chunk(2) for part in batch), strict=True):
                loss = nn.functional.cross_entropy(self.model(inputs), labels)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update_parameters(self.model)
            return {"loss": loss.detach(), "scale": self.scaler.get_scale()}

    def build(config: tiny.Config) -> mltrain.Task:
        return mltrain.Task(Scaled(config), mltrain.ResumableLoader(tiny.Noisy(40), 8))

    assert_resumes_exactly(project(build), {"epochs": 3}, interrupt_at=[1, 2, 3, 4, 8, 14])
