"""The loop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import mltrain
from mltrain.errors import NonFiniteLoss, UsageError
from mltrain.rng import seed_everything
from mltrain.task import Task
from tests.support import tiny
from tests.support.equality import identical
from tests.support.trainings import trained


def test_a_loader_without_batches_raises_an_error() -> None:
    class Empty:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    def build(config: tiny.Config) -> Task:
        return Task(tiny.build(config).step, Empty())

    with pytest.raises(UsageError, match="no batch"):
        trained(build)


def test_a_trainer_without_a_store_trains_the_same() -> None:
    config = tiny.Config(epochs=2)
    seed_everything(config.seed)
    trainer = mltrain.Trainer(tiny.build(config), config)
    seed_everything(config.seed)
    assert [progress.step for progress in trainer.steps()] == list(range(1, 13))
    assert identical(trainer.state.state_dict(), trained(epochs=2)[0].state.state_dict())


def test_a_trainer_without_a_store_has_nothing_to_roll_back_to() -> None:
    config = tiny.Config(epochs=1, nan_at=3, on_nonfinite="rollback")
    with pytest.raises(NonFiniteLoss, match="No checkpoint holds a trained state"):
        list(mltrain.Trainer(tiny.build(config), config).steps())


def test_a_device_without_memory_ends_the_training_with_advice() -> None:
    config = tiny.Config(epochs=1)
    task = tiny.build(config)
    inner: Any = task.step

    def step(batch: Any) -> Any:
        if inner.done == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(batch)

    trainer = mltrain.Trainer(Task(step, task.loader), config)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory") as raised:
        list(trainer.steps())
    assert "after step 3" in raised.value.__notes__[0]
    assert "a smaller batch" in raised.value.__notes__[0]


WRONG: dict[str, dict[str, Any]] = {
    "a module as task": {"task": torch.nn.Linear(1, 1)},
    "the class of a configuration": {"config": tiny.Config},
    "no configuration": {"config": None},
    "the class of a tracker": {"tracker": mltrain.NullTracker},
    "the class of a saver": {"saver": mltrain.NullSaver},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_trainer_names_an_argument_of_a_wrong_type(what: str) -> None:
    config = tiny.Config()
    with pytest.raises(UsageError, match=f"^{next(iter(WRONG[what]))}=.* is invalid. Expected an? "):
        mltrain.Trainer(**{"task": tiny.build(config), "config": config, **WRONG[what]})
