"""The doubles in memory."""

import mltrain
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from tests.support import tiny


def test_the_doubles_are_what_a_trainer_needs() -> None:
    tracker, saver = MemoryTracker(), MemorySaver()
    config = tiny.Config(epochs=2)
    trainer = mltrain.Trainer(tiny.build(config), config, tracker, saver, StopAt())
    for _ in trainer.steps():
        pass
    assert [kept.step for kept in saver.checkpoints] == [6, 12]
    assert set(saver.checkpoints[-1].files) >= {"model.safetensors", "state.json", "history.csv"}
    assert len(tracker.points["step/loss"]) == 12
    assert len(tracker.rows) == 2
    assert ("val/weights", 12) in tracker.pictures
