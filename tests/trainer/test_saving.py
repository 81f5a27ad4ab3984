"""A step is saved once, when it is due."""

from dataclasses import replace
from typing import Any

import pytest

from mltrain.task import Task
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny
from tests.support.trainings import steps_saved, trained


def test_two_triggers_at_one_step_make_one_checkpoint() -> None:
    _, _, saver = trained(epochs=2, save_every_steps=3, save_interval=1)
    assert [kept.step for kept in saver.checkpoints] == [3, 6, 9, 12]
    assert steps_saved(saver)[6] == "epoch"


def test_an_improvement_is_saved_even_where_no_interval_is_due() -> None:
    trainer, _, saver = trained(epochs=3, save_interval=100)
    assert trainer.best.step in steps_saved(saver)
    assert max(steps_saved(saver)) == 18  # and the end is


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"save_interval": 2}, [12, 24]),
        ({"save_interval": 0}, [24]),  # the end is always saved
        ({"save_interval": 0, "save_every_steps": 5}, [5, 10, 15, 20, 24]),
        ({"save_interval": 0, "save_every_minutes": 1e-9}, list(range(1, 25))),
        ({"save_interval": 0, "save_every_minutes": 1e9}, [24]),
    ],
)
def test_a_checkpoint_is_due_every_so_many_epochs_steps_or_minutes(keys: dict[str, Any], steps: list[int]) -> None:
    def build(config: tiny.Config) -> Task:
        return replace(tiny.build(config), evaluate=None)  # so that no epoch is the best

    _, _, saver = trained(build, epochs=4, **keys)
    assert sorted(steps_saved(saver)) == steps


@pytest.mark.parametrize("step", [3, 6])
def test_a_request_to_stop_that_comes_after_the_save_decision_is_saved_all_the_same(step: int) -> None:
    config, saver, stop = tiny.Config(epochs=2, save_interval=0, best_metric="none-such"), MemorySaver(), StopAt()
    trainer = Trainer(tiny.build(config), config, MemoryTracker(), saver, stop)
    for progress in trainer.steps():
        if progress.step == step:
            stop.step, stop.progress = step, trainer.progress
    assert steps_saved(saver) == {step: "interrupted"}
    assert not trainer.unsaved
