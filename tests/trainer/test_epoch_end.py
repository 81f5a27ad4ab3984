"""The best so far, early stopping, metrics that nothing measures."""

from dataclasses import replace
from typing import Any

import pytest

from mltrain.checkpoint.policies import Best
from mltrain.task import Task
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny
from tests.support.equality import identical
from tests.support.trainings import on_a_plateau, resumed, trained


def test_early_stopping_ends_the_training_and_its_counters_are_state() -> None:
    trainer, _, _ = trained(epochs=50, lr=0.0, early_stopping_patience=2, early_stopping_metric="val/accuracy")
    assert trainer.stopping.exhausted
    assert trainer.progress.epoch < 50
    assert trainer.state.state_dict()["stopping"]["without_improvement"] == 2


def without(name: str, epochs: Any) -> Any:
    """A project that evaluates a metric in some epochs only."""

    def build(config: tiny.Config) -> Task:
        task, count = tiny.build(config), []

        def evaluate() -> Any:
            count.append(0)
            measured = dict(task.evaluate())  # type: ignore[misc]
            return {key: value for key, value in measured.items() if key != name or len(count) in epochs}

        return replace(task, evaluate=evaluate)

    return build


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"best_metric": "val/los"}, "best_metric=val/los was not measured at epoch 1. Did you mean 'val/loss'?"),
        ({"best_metric": "val/los", "eval_interval": 2}, "best_metric=val/los was not measured at epoch 2."),
        (
            {"early_stopping_metric": "val/acuracy", "early_stopping_patience": 1},
            "early_stopping_metric=val/acuracy was not measured at epoch 1. Did you mean 'val/accuracy'?",
        ),
        ({"retention": "Latest(1) | (Best(2, 'val/iou') & Best(1))"}, "retention=val/iou was not measured at epoch 1."),
    ],
)
def test_a_metric_that_nothing_measures_is_named_with_the_nearest(
    keys: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _, saver = trained(epochs=4, **keys)
    assert caplog.text.count(said) == 1
    assert caplog.text.count("No evaluation measured") == 1
    caplog.clear()
    trainer = Trainer(tiny.build(trainer.config), trainer.config, MemoryTracker(), saver, StopAt())
    trainer.restore(saver.checkpoints[1].parts())
    list(trainer.steps())
    assert caplog.text.count(" was not measured at epoch ") == 1, "a resume names it again"


def test_a_metric_that_the_policy_of_the_task_needs_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    trained(lambda config: replace(tiny.build(config), policy=Best(2, "val/iou")), epochs=1)
    assert "policy=val/iou was not measured at epoch 1." in caplog.text


def test_metrics_that_are_measured_now_and_then_are_no_news_and_the_default_needs_no_evaluation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained(epochs=2)
    trained(lambda config: replace(tiny.build(config), evaluate=None), epochs=2)
    trained(without("val/loss", {1, 3}), epochs=4)
    assert "measured" not in caplog.text
    trainer, _, _ = trained(without("val/loss", {3}), epochs=4)
    assert caplog.text.count("was not measured at epoch 1") == 1
    assert caplog.text.count("was not measured") == 1, "once it has come, it is not missed at the end"
    assert trainer.best.epoch == 3


def nan_in(name: str, epochs: Any, value: float = float("nan")) -> Any:
    """A project whose evaluation gives NaN in some epochs."""

    def build(config: tiny.Config) -> Task:
        task, count = tiny.build(config), []

        def evaluate() -> Any:
            count.append(0)
            return dict(task.evaluate()) | ({name: value} if len(count) in epochs else {})  # type: ignore[misc]

        return replace(task, evaluate=evaluate)

    return build


@pytest.mark.parametrize(
    ("name", "keys", "key"),
    [
        ("val/loss", {}, "best_metric"),
        ("val/accuracy", {"best_metric": "val/accuracy", "best_mode": "max"}, "best_metric"),
        (
            "val/accuracy",
            {"early_stopping_metric": "val/accuracy", "early_stopping_patience": 9},
            "early_stopping_metric",
        ),
        ("val/accuracy", {"retention": "Latest(1) | Best(2, 'val/accuracy', 'max')"}, "retention"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_deciding_metric_that_is_not_finite_is_warned_of_once(
    name: str, keys: Any, key: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    trained(nan_in(name, {1, 2, 3}, value), epochs=3, **keys)
    assert caplog.text.count(f"{key}={name} is {value} at epoch 1. Only finite values count.") == 1
    assert caplog.text.count(f"{key}={name} is ") == 1
    assert caplog.text.count(f"No evaluation measured a finite {key}={name}") == 1
    caplog.clear()
    trainer, _, _ = trained(nan_in(name, {2}, value), epochs=3, **keys)
    assert caplog.text.count(f"{key}={name} is {value} at epoch 2.") == 1
    assert "No evaluation measured" not in caplog.text
    assert trainer.best.value is not None, "a finite value counts"


def test_a_metric_that_decides_nothing_may_be_nan(caplog: pytest.LogCaptureFixture) -> None:
    trained(nan_in("val/accuracy", {1, 2}), epochs=2)
    assert "val/accuracy" not in caplog.text


@pytest.mark.parametrize("eval_interval", [1, 2])
def test_a_schedule_on_a_plateau_follows_evaluations_and_resumes_exactly(eval_interval: int) -> None:
    keys = {"epochs": 6, "eval_interval": eval_interval}
    whole, tracker, saver = trained(on_a_plateau, **keys)
    # The rate that an epoch was trained with is that of the evaluations before it.
    rates = [tracker.points["learning_rate"][step] for step in range(6, 37, 6)]
    evaluations = [epoch // eval_interval for epoch in range(6)]
    assert rates == [1e-2 * 0.5 ** max(0, done - 1) for done in evaluations]
    part = MemorySaver()
    part.checkpoints = saver.checkpoints[:3]
    assert identical(resumed(part, MemoryTracker(), on_a_plateau, **keys).state.state_dict(), whole.state.state_dict())
