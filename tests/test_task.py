"""What a task refuses."""

from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

from mltrain.errors import UsageError
from mltrain.task import Task
from tests.support import tiny
from tests.support.trainings import on_a_plateau, trained


def test_a_loader_that_cannot_say_where_it_is_is_refused_with_what_to_take() -> None:
    task = tiny.build(tiny.Config())
    with pytest.raises(UsageError, match=r"A DataLoader cannot say where it is.*ResumableLoader"):
        Task(task.step, DataLoader([1, 2, 3]))  # type: ignore[arg-type]


def test_a_schedule_on_a_plateau_that_cannot_follow_its_metric_is_refused() -> None:
    for build, keys, said in (
        (on_a_plateau, {"best_mode": "max"}, r"Expected the mode of best_mode, 'max'"),
        (lambda config: on_a_plateau(config, mode="max"), {}, r"ReduceLROnPlateau\(mode='max'\)"),
        (lambda config: replace(on_a_plateau(config), evaluate=None), {}, r"no evaluate\(\) that measures it"),
    ):
        with pytest.raises(UsageError, match=said):
            trained(build, **keys)
    trained(lambda config: replace(on_a_plateau(config), evaluate=None), epochs=1, best_metric="train/loss")
