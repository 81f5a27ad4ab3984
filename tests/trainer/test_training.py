"""The parts of a training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.errors import UnsupportedValue
from mltrain.state import TrainState
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny


def test_weights_of_a_compiled_model_fit_an_uncompiled_one_and_the_other_way_round() -> None:
    plain = nn.Linear(3, 2)
    compiled = torch.compile(nn.Linear(3, 2))
    assert any(name.startswith("_orig_mod.") for name in compiled.state_dict())
    for source, target in ((plain, compiled), (compiled, plain)):
        state = TrainState()
        state.add("model", target)
        weights = {name: tensor + 1 for name, tensor in source.state_dict().items()}
        state.restore({"model": weights})
        assert [t.tolist() for t in target.state_dict().values()] == [t.tolist() for t in weights.values()]


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
