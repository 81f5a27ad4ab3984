"""Evaluation and pictures change nothing; their errors cost no step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mltrain.errors import UsageError
from mltrain.rng import seed_everything
from mltrain.task import Task
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny
from tests.support.equality import identical
from tests.support.trainings import resumed, steps_saved, trained


def test_evaluating_never_changes_the_training() -> None:
    often, rarely = (trained(epochs=5, eval_interval=n)[0].state.state_dict() for n in (1, 5))
    for part in ("model", "optimizer", "scheduler", "rng", "loader", "metrics"):
        assert identical(often[part], rarely[part]), part


class Failing:
    """Raises at a call, like an error in late code."""

    def __init__(self, inner: Any, at: int) -> None:
        self.inner, self.at, self.calls = inner, at, 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("a mistake in the project")
        return self.inner()


def without_length(config: tiny.Config) -> Task:
    task = tiny.build(config)

    class Streamed:
        def __iter__(self) -> Iterator[Any]:
            return iter(task.loader)

        def state_dict(self) -> Any:
            return task.loader.state_dict()

        def load_state_dict(self, state: Any) -> None:
            task.loader.load_state_dict(state)

    return replace(task, loader=Streamed())


@pytest.mark.parametrize("build", [tiny.build, without_length])
@pytest.mark.parametrize("where", ["evaluate", "epoch_metrics"])
def test_an_evaluation_that_raises_costs_no_step_and_is_done_once(build: Any, where: str) -> None:
    whole, expected, _ = trained(build, epochs=3)
    saver, tracker = MemorySaver(), MemoryTracker()

    def failing(config: tiny.Config) -> Task:
        task = build(config)
        if where == "evaluate":
            return replace(task, evaluate=Failing(task.evaluate, 2))
        task.step.epoch_metrics = Failing(task.step.epoch_metrics, 2)
        return task

    config = tiny.Config(epochs=3)
    seed_everything(config.seed)
    trainer = Trainer(failing(config), config, tracker, saver, StopAt())
    seed_everything(config.seed)
    with pytest.raises(RuntimeError, match="a mistake in the project"):
        for _ in trainer.steps():
            pass
    assert [(kept.step, kept.kind) for kept in saver.checkpoints] == [(6, "epoch"), (12, "step")]
    assert list(tracker.points["val/loss"]) == [6]
    assert list(tracker.points["train/accuracy"]) == [6]
    tracker.log_metrics = Once(tracker)  # type: ignore[method-assign]
    again = resumed(saver, tracker, build, epochs=3)
    assert identical(again.state.state_dict(), whole.state.state_dict())
    assert tracker.points == expected.points
    assert (12, "epoch") in [(kept.step, kept.kind) for kept in saver.checkpoints]


class Once:
    """Logs metrics, and fails for a repeated point."""

    def __init__(self, tracker: MemoryTracker) -> None:
        self.tracker, self.log_metrics = tracker, tracker.log_metrics

    def __call__(self, values: Any, step: int, *, compared: bool = True) -> None:
        assert not [key for key in values if compared and step in self.tracker.points.get(key, {})]
        self.log_metrics(values, step, compared=compared)


def test_an_evaluation_that_leaves_other_weights_behind_is_not_saved(caplog: pytest.LogCaptureFixture) -> None:
    def swapping(config: tiny.Config) -> Task:
        task = tiny.build(config)

        def evaluate() -> Any:
            with torch.no_grad():
                task.step.inner.model[0].weight.zero_()  # type: ignore[attr-defined]
            raise RuntimeError("a mistake while the weights are averaged ones")

        return replace(task, evaluate=evaluate)

    saver = MemorySaver()
    trainer = Trainer(swapping(tiny.Config()), tiny.Config(), MemoryTracker(), saver, StopAt())
    with pytest.raises(RuntimeError, match="averaged"):
        list(trainer.steps())
    assert saver.checkpoints == []
    assert "changed the model's parameters" in caplog.text


def test_pictures_that_cannot_be_made_are_a_warning_after_the_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    saver = MemorySaver()
    saved_before: list[int] = []

    def images() -> Any:
        saved_before.append(len(saver.checkpoints))
        raise KeyError("sample")

    config = tiny.Config(epochs=2)
    trainer = Trainer(replace(tiny.build(config), images=images), config, MemoryTracker(), saver, StopAt())
    for _ in trainer.steps():
        pass
    assert trainer.progress.epoch == 2
    assert saved_before == [1, 2]
    assert "pictures of epoch 2 are missing: KeyError" in caplog.text


def test_pictures_are_made_again_when_they_may_be_missing() -> None:
    _, tracker, saver = trained(epochs=2)
    tracker.pictures.clear()
    config = tiny.Config(epochs=2)
    again = Trainer(tiny.build(config), config, tracker, saver, StopAt())
    again.restore(saver.checkpoints[-1].parts())
    before = again.state.state_dict()
    again.show()
    assert list(tracker.pictures) == [("val/weights", 12)]
    assert identical(again.state.state_dict(), before)
    in_the_middle = Trainer(tiny.build(config), config, MemoryTracker(), saver, StopAt())
    next(in_the_middle.steps())
    in_the_middle.show()
    assert in_the_middle.progress.step == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"val/loss": [0.5]}, r"evaluate\(\) returned a list, \[0.5\], as the metric 'val/loss'"),
        ({"val/loss": None}, "a NoneType"),
        ({"val/loss": "0.5"}, "a str"),
        ({"val/loss": 1j}, "a complex"),
        ({"val/loss": np.complex64(1)}, "complex64"),
        ({"val/loss": torch.zeros(3)}, r"a Tensor of shape \(3,\)"),
        ({"val/loss": {"a": 1.0}}, "a dict"),
        ({"val/loss": 10**400}, "an int|a int"),
        ({1: 0.5}, "a metric called 1"),
        ({"": 0.5}, "a metric called ''"),
        ([0.5], r"evaluate\(\) returned a list"),
        (None, r"evaluate\(\) returned a NoneType"),
    ],
)
def test_what_is_not_a_number_by_name_is_refused_with_what_came(value: Any, said: str) -> None:
    saver = MemorySaver()
    task = replace(tiny.build(tiny.Config()), evaluate=lambda: value)
    with pytest.raises(UsageError, match=said):
        list(Trainer(task, tiny.Config(), MemoryTracker(), saver, StopAt()).steps())
    assert [kept.step for kept in saver.checkpoints] == [6]


def test_a_learning_rate_that_cannot_be_read_costs_no_epoch() -> None:
    class Odd(tiny.Faulty):
        @property
        def learning_rate(self) -> Any:
            return [0.1, 0.2]

    def build(config: tiny.Config) -> Task:
        task = tiny.build(config)
        return replace(task, step=Odd(task.step.inner, config))  # type: ignore[attr-defined]

    saver, config = MemorySaver(), tiny.Config(epochs=1)
    with pytest.raises(UsageError, match="as the metric 'learning_rate'"):
        list(Trainer(build(config), config, MemoryTracker(), saver, StopAt()).steps())
    assert steps_saved(saver) == {6: "step"}
    assert resumed(saver, MemoryTracker(), epochs=1).progress.epoch == 1


def test_metrics_that_the_trainer_records_itself_are_not_taken_from_an_evaluation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def build(config: tiny.Config) -> Task:
        return replace(tiny.build(config), evaluate=lambda: {"val/loss": 0.5, "epoch": 70.0, "step": 80.0})

    _, tracker, _ = trained(build, epochs=2)
    assert list(tracker.points["epoch"].values()) == [1.0, 2.0]
    assert "step" not in tracker.points
    assert list(tracker.points["val/loss"].values()) == [0.5, 0.5]
    assert [one.getMessage() for one in caplog.records if "records itself" in one.getMessage()] == [
        "evaluate() returned epoch, step, which the trainer records itself. The values of evaluate() are not used. Try: "
        "other names, such as val/epoch"
    ]


def test_a_loss_total_of_an_evaluation_replaces_that_of_the_training(caplog: pytest.LogCaptureFixture) -> None:
    def build(config: tiny.Config) -> Task:
        return replace(tiny.build(config), evaluate=lambda: {"loss_total": 80.0})

    trainer, tracker, _ = trained(build, epochs=1, best_metric="loss_total")
    assert list(tracker.points["loss_total"].values()) == [80.0]
    assert trainer.history.rows[0]["loss_total"] == 80.0
    assert "not measured" not in caplog.text
