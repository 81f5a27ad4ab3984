"""The parts of a training."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mltrain.errors import UnsupportedValue
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from mltrain.trainer.training import Means
from tests.support import tiny


def test_a_part_that_no_checkpoint_can_hold_is_refused_before_the_first_step() -> None:
    class Holding:
        def state_dict(self) -> Any:
            return {"call": print}

        def load_state_dict(self, state: Any) -> None:
            raise NotImplementedError

    config = tiny.Config()
    trainer = Trainer(
        replace(tiny.build(config), state={"mine": Holding()}), config, MemoryTracker(), MemorySaver(), StopAt()
    )
    with pytest.raises(UnsupportedValue, match="mine"):
        next(trainer.steps())
    assert trainer.progress.step == 0


def test_each_value_counts_in_the_steps_that_measured_it() -> None:
    means = Means()
    means.add({"loss": 1.0})
    means.add({"loss": 3.0, "rare": 5.0})
    assert means.steps == 2
    assert means.pop() == {"loss": 2.0, "rare": 5.0}
    assert means.steps == 0
    assert means.pop() == {}


def test_a_resume_in_the_middle_changes_nothing() -> None:
    whole, first, second = Means(), Means(), Means()
    for number in range(6):
        whole.add({"loss": float(number)})
    for number in range(3):
        first.add({"loss": float(number)})
    second.load_state_dict(first.state_dict())
    for number in range(3, 6):
        second.add({"loss": float(number)})
    assert second.steps == whole.steps
    assert second.pop() == whole.pop()


def test_a_skipped_step_has_no_value_and_is_counted_until_a_step_trains() -> None:
    means = Means()
    means.skip()
    means.skip()
    assert (means.skipped, means.skipped_in_a_row, means.trained) == (2, 2, False)
    again = Means()
    again.load_state_dict(means.state_dict())
    assert (again.skipped_in_a_row, again.trained) == (2, False)
    means.add({"loss": 1.0})
    assert (means.skipped, means.skipped_in_a_row, means.trained) == (2, 0, True)


@pytest.mark.parametrize("state", [{"sums": {"loss": 6.0}, "counts": {"loss": 3}}])
def test_a_state_of_an_earlier_version_has_as_many_steps_as_its_values(state: dict[str, object]) -> None:
    means = Means()
    means.load_state_dict(state)
    assert (means.steps, means.trained, means.skipped_in_a_row) == (3, True, 0)
    assert means.pop() == {"loss": 2.0}


def scaled(saver: MemorySaver, amp: bool, epochs: int) -> Trainer:
    """A trainer whose step may have a gradient scaler."""
    config = tiny.Config(epochs=epochs)
    state = {"scaler": torch.amp.GradScaler("cpu", init_scale=64.0)} if amp else {}
    return Trainer(replace(tiny.build(config), state=state), config, MemoryTracker(), saver, StopAt())


@pytest.mark.parametrize(("before", "after", "logged"), [(True, False, "is not used"), (False, True, "lacks scaler")])
def test_a_precision_with_a_gradient_scaler_may_change_into_one_without_and_back(
    before: bool, after: bool, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    saver = MemorySaver()
    list(scaled(saver, before, 1).steps())
    kept = saver.peek()
    assert kept is not None
    assert ("scaler" in kept) == before
    trainer = scaled(saver, after, 2)
    trainer.restore(kept)
    assert logged in caplog.text
    list(trainer.steps())
    kept = saver.peek()
    assert kept is not None
    assert (kept["progress"]["epoch"], "scaler" in kept) == (2, after)
