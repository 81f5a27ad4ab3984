"""Losses, gradients and weights that are not finite."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import mltrain
from mltrain.errors import NonFiniteLoss, StorageError
from mltrain.task import Task
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny
from tests.support.trainings import resumed, steps_saved, trained


def test_a_loss_that_is_not_finite_can_be_skipped() -> None:
    _, tracker, _ = trained(epochs=1, nan_at=3, on_nonfinite="skip")
    assert tracker.points["step/nonfinite"] == {3: 1.0}


def test_a_skipped_step_leaves_no_trace_in_running_means() -> None:
    def build(config: tiny.Config) -> Task:
        inputs = torch.randn(24, 3)
        inputs[5] = math.nan
        net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        step = mltrain.Supervised(net, torch.nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
        return Task(step, mltrain.ResumableLoader(torch.utils.data.TensorDataset(inputs, inputs[:, :1]), 4))

    trainer, tracker, saver = trained(build, epochs=1, on_nonfinite="skip", best_metric="train/loss")
    assert len(tracker.points["step/nonfinite"]) == 1
    assert all(tensor.isfinite().all() for tensor in trainer.state.state_dict()["model"].values())
    assert trainer.state.state_dict()["model"]["0.num_batches_tracked"] == 5
    assert saver.failure is None


class Poisoned(tiny.Faulty):
    """A step whose hidden counter survives a recovery. ``nan_at`` spoils the weights."""

    def parts(self) -> Any:
        return self.inner.parts()

    def __call__(self, batch: Any) -> Any:
        result = super().__call__(batch)
        if self.done == self.config.nan_at:
            with torch.no_grad():
                self.inner.model[0].weight.fill_(float("nan"))  # type: ignore[index,operator]
        return result


def poisoned(config: tiny.Config) -> Task:
    task = tiny.build(config)
    return Task(Poisoned(task.step.inner, config), task.loader, task.evaluate)  # type: ignore[attr-defined]


def test_a_loss_that_is_not_finite_can_roll_back_what_is_trained_while_the_data_go_on() -> None:
    trainer, tracker, saver = trained(poisoned, epochs=3, nan_at=9, on_nonfinite="rollback")
    assert all(tensor.isfinite().all() for tensor in trainer.state.state_dict()["model"].values())
    assert tracker.points["step/nonfinite"] == {9: 1.0}
    assert sorted(tracker.points["step/loss"]) == [step for step in range(1, 19) if step != 9]  # each step once
    assert trainer.progress.step == 18
    assert max(steps_saved(saver)) == 18


def test_a_training_that_going_back_does_not_help_gives_up_with_what_it_has() -> None:
    def hopeless(config: tiny.Config) -> Task:
        task = poisoned(config)
        step = task.step

        class Hopeless(Poisoned):
            def __call__(self, batch: Any) -> Any:
                result = super().__call__(batch)
                return {"loss": torch.tensor(float("inf"))} if self.done >= 9 else result

        return Task(Hopeless(step.inner, config), task.loader)  # type: ignore[attr-defined]

    with pytest.raises(NonFiniteLoss, match=r"step 12 .*3 rollbacks .*did not help"):
        trained(hopeless, epochs=3, on_nonfinite="rollback")


def test_without_a_checkpoint_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(NonFiniteLoss, match="step 3"):
        trained(epochs=1, nan_at=3, on_nonfinite="rollback")


class NotFinite(tiny.Faulty):
    """A step that returns NaN at the given steps."""

    name = "grad_norm"
    at: frozenset[int] = frozenset()
    counts = True

    def parts(self) -> Any:
        return super().parts() if self.counts else self.inner.parts()

    def __call__(self, batch: Any) -> Any:
        self.done += 1
        if self.done in self.at:
            return {"loss": 1.0, self.name: float("nan"), "draw": 100.0}
        return self.inner(batch)


def not_finite(*at: int, name: str = "grad_norm", counts: bool = True) -> Any:
    def build(config: tiny.Config) -> Task:
        task = tiny.build(config)
        step = NotFinite(task.step.inner, config)  # type: ignore[attr-defined]
        step.at, step.name, step.counts = frozenset(at), name, counts
        return replace(task, step=step)

    return build


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_gradient_that_is_not_finite_counts_like_a_loss(name: str) -> None:
    with pytest.raises(NonFiniteLoss, match=rf"step 3 .*{name} is nan.*No checkpoint holds a trained state"):
        trained(not_finite(3, name=name), epochs=1)
    with pytest.raises(NonFiniteLoss, match=rf"step 9 .*{name} is nan.*The checkpoint of step 6 is intact"):
        trained(not_finite(9, name=name), epochs=2)
    trainer, tracker, _ = trained(not_finite(3, 4, name=name), epochs=1, on_nonfinite="skip")
    assert tracker.points["step/nonfinite"] == {3: 1.0, 4: 1.0}
    assert "train/draw" not in tracker.points, "a step that is left out is no part of the means"
    assert trainer.history.rows[0]["step"] == 6


def test_skipping_gives_up_after_so_many_in_a_row_and_counts_on_after_a_resume() -> None:
    build = not_finite(*range(4, 13))
    trained(not_finite(*range(2, 18, 2)), epochs=3, on_nonfinite="skip", nonfinite_limit=2)
    with pytest.raises(NonFiniteLoss, match=r"step 9 .*for the 6th time in a row"):
        trained(build, epochs=3, on_nonfinite="skip", nonfinite_limit=6)
    saver, config = MemorySaver(), tiny.Config(epochs=3, on_nonfinite="skip", nonfinite_limit=6, save_every_steps=1)
    trainer = Trainer(build(config), config, MemoryTracker(), saver, StopAt())
    for progress in trainer.steps():
        if progress.step == 7:
            break
    with pytest.raises(NonFiniteLoss, match=r"step 9 .*for the 6th time in a row"):
        resumed(saver, MemoryTracker(), build, epochs=3, on_nonfinite="skip", nonfinite_limit=6)


def test_an_epoch_in_which_no_step_trained_ends_the_training() -> None:
    with pytest.raises(NonFiniteLoss, match="None of the 6 steps of epoch 2"):
        trained(not_finite(*range(7, 13)), epochs=3, on_nonfinite="skip")


def test_a_training_in_which_nothing_was_trained_is_not_done() -> None:
    keys: dict[str, Any] = {"epochs": 3, "items": 8, "on_nonfinite": "skip"}  # epochs of one step
    trained(not_finite(1, 3), **keys)
    tracker, saver, config = MemoryTracker(), MemorySaver(), tiny.Config(**keys)
    build = not_finite(1, 2, 3)
    with pytest.raises(NonFiniteLoss, match="None of 3 steps had a finite loss and gradient"):
        list(Trainer(build(config), config, tracker, saver, StopAt()).steps())
    with pytest.raises(NonFiniteLoss, match="None of 3 steps"):
        resumed(saver, tracker, build, **keys)


@pytest.mark.parametrize("save_every_steps", [0, 1])
def test_going_back_gives_up_although_each_state_is_saved(save_every_steps: int) -> None:
    build = not_finite(*range(9, 100), counts=False)
    with pytest.raises(
        NonFiniteLoss, match=r"step 12 .*3 rollbacks .*did not help.*The checkpoint of step \d+ is intact"
    ):
        trained(build, epochs=9, on_nonfinite="rollback", save_every_steps=save_every_steps)


class Refusing(MemorySaver):
    """A saver that finds non-finite weights in the background."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None

    def save(self, state: Any, **more: Any) -> None:
        finite = all(tensor.isfinite().all() for tensor in state["model"].values())
        self.failure = None if finite else NonFiniteLoss("the weights are not finite")
        if finite:
            super().save(state, **more)


def corrupted(at: int) -> Any:
    def build(config: tiny.Config) -> Task:
        task = tiny.build(config)
        inner, calls = task.step, []

        class OwnStep:
            def parts(self) -> Any:
                return inner.parts()  # type: ignore[attr-defined]

            def __call__(self, batch: Any) -> Any:
                inner(batch)
                calls.append(0)
                if len(calls) == at:
                    with torch.no_grad():
                        inner.inner.model[4].bias.fill_(float("nan"))  # type: ignore[attr-defined]
                return {"loss": 1.0}

        return Task(OwnStep(), task.loader)

    return build


@pytest.mark.parametrize("mode", ["abort", "skip"])
def test_weights_that_a_step_corrupts_while_its_loss_is_finite_end_the_training(mode: Any) -> None:
    config = tiny.Config(epochs=3, on_nonfinite=mode)
    trainer = Trainer(corrupted(12)(config), config, MemoryTracker(), saver := Refusing(), StopAt())
    with pytest.raises(NonFiniteLoss, match="weights are not finite"):
        list(trainer.steps())
    assert (trainer.progress.step, steps_saved(saver)) == (13, {6: "epoch"})


def test_weights_that_a_step_corrupts_are_rolled_back() -> None:
    config = tiny.Config(epochs=3, on_nonfinite="rollback")
    trainer = Trainer(corrupted(12)(config), config, tracker := MemoryTracker(), saver := Refusing(), StopAt())
    list(trainer.steps())
    assert tracker.points["step/nonfinite"] == {13: 1.0}
    assert steps_saved(saver) == {6: "epoch", 18: "epoch"}


def test_a_checkpoint_that_cannot_be_read_is_not_called_intact() -> None:
    class Away(MemorySaver):
        def peek(self) -> Any:
            raise StorageError("the artifact store does not answer")

    config = tiny.Config(epochs=3)
    trainer = Trainer(not_finite(9)(config), config, MemoryTracker(), Away(), StopAt())
    with pytest.raises(NonFiniteLoss, match="The last checkpoint cannot be read now"):
        list(trainer.steps())


def test_a_step_without_a_loss_is_warned_of_once_where_on_nonfinite_asks_for_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def nameless(config: tiny.Config) -> Task:
        task = tiny.build(config)
        step = tiny.Faulty(task.step.inner, config)  # type: ignore[attr-defined]
        return replace(task, step=lambda batch: {"mean": step(batch)["loss"]}, state=step.parts())

    for wanted, count in (("abort", 0), ("skip", 1), ("rollback", 1)):
        caplog.clear()
        trained(nameless, epochs=2, on_nonfinite=wanted)
        assert caplog.text.count("the step returns neither loss nor grad_norm") == count
