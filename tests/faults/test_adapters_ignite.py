"""Trainings of Ignite, killed at a random iteration: every cell of the table in docs/ignite.md."""

import random
import signal
from typing import Any

import pytest
from ignite.engine import Events

from tests.adapters.conftest import tracking as tracking
from tests.adapters.ignite_loops import Loop, plain, resumable, sent, stateful
from tests.adapters.test_ignite import pytestmark
from tests.adapters.test_lightning import equal, newest_run, points, status
from tests.support.forked import killed

pytestmark = [*pytestmark, pytest.mark.faults]
LOADERS: dict[str, dict[str, Any]] = {
    "resumable": {"loader": resumable},
    "of torchdata": {"loader": stateful},
    "without a position": {"loader": plain, "every": Events.EPOCH_COMPLETED},
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_killed_training_ends_as_if_it_had_not_been(kind: str, tracking: str) -> None:
    iteration = random.Random(f"killed {kind}").randrange(12, 29)

    def train() -> None:
        loop = Loop(**LOADERS[kind], at=(iteration, sent(signal.SIGKILL)))
        loop.trainer.add_event_handler(Events.ITERATION_STARTED(once=11), lambda: loop.saver._training.manager.wait())
        loop.run()

    killed(train)
    run_id = newest_run()
    assert status(run_id) == "RUNNING"
    again = Loop(f"mltrain:{run_id}", **LOADERS[kind]).run()
    assert status(run_id) == "FINISHED"
    whole = Loop(**LOADERS[kind]).run()
    assert equal(whole.model.state_dict(), again.model.state_dict())
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())
    assert points(run_id) == points(str(whole.saver.run_id))
