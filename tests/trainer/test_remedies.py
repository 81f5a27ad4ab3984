"""The remedy follows torch's message."""

from typing import Any

import pytest

import mltrain
from mltrain.task import Task
from tests.support import tiny


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("is killed by signal: Killed. ", "fewer num_workers or more memory"),
        ("is killed by signal: Bus error. It is possible that", "more shared memory"),
        ("exited unexpectedly with exit code 3. Details are lost", "num_workers=0"),
    ],
)
@pytest.mark.parametrize("noticed", ["by the loader", "in the step"])
def test_the_death_of_a_loaders_worker_ends_the_training_with_advice(reason: str, advice: str, noticed: str) -> None:
    config = tiny.Config(epochs=1)
    task = tiny.build(config)
    signalled = RuntimeError(f"DataLoader worker (pid 4711) {reason}")

    def step(batch: Any) -> Any:
        if noticed == "in the step":
            raise signalled
        raise RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly") from signalled

    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        list(mltrain.Trainer(Task(step, task.loader), config).steps())
    assert "after step 0; checkpoints up to there are intact" in raised.value.__notes__[0]
    assert f"Try: {advice}" in raised.value.__notes__[0]
