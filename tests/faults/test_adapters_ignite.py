"""Trainings of Ignite, killed at a random iteration: every cell of the table in docs/ignite.md."""

import random
import signal
from typing import Any

import pytest
from ignite.engine import Events

from mltrain.adapters.origin import Address, Origin
from tests.adapters.conftest import tracking as tracking
from tests.adapters.ignite_loops import Loop, plain, resumable, sent, stateful
from tests.adapters.test_ignite import pytestmark
from tests.support.equality import identical
from tests.support.forked import killed
from tests.support.recorded import newest_run, points, status

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
    assert identical(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())
    assert points(run_id) == points(str(whole.saver.run_id))


def test_a_loader_without_a_position_loses_its_place_within_an_epoch_and_nothing_else(tracking: str) -> None:
    killed(lambda: Loop(loader=plain, at=(17, sent(signal.SIGKILL, wait=True))).run())
    run_id = newest_run()
    again = Loop(f"mltrain:{run_id}", loader=plain)
    assert again.trainer.state.iteration == 15
    assert identical(dict(Origin.read(Address(run_id)).state["model"]), dict(again.model.state_dict()))
    again.run()
    whole = Loop(loader=plain).run()
    mine, theirs = points(run_id)["loss"], points(str(whole.saver.run_id))["loss"]
    assert [step for step, _ in mine] == [step for step, _ in theirs] == list(range(1, 31))
    assert mine[:15] == theirs[:15]
    assert mine[15:] != theirs[15:]  # other batches, as the table says
