"""The parts of a training."""

from dataclasses import replace
from typing import Any

import pytest

from mltrain.errors import UnsupportedValue
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
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
