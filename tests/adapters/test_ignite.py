import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from mltrain.adapters.ignite import MltrainSaver
from mltrain.adapters.origin import Address, Origin
from mltrain.errors import RunNotFound, UnsupportedValue, UsageError
from tests.adapters.ignite_loops import Loop, plain, resumable, sent, stateful
from tests.support.equality import identical
from tests.support.recorded import newest_run, points, status

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("User", "Deprecation", "Future")]


@pytest.mark.parametrize("loader", [resumable, stateful])
@pytest.mark.parametrize("iteration", [14, 20])
def test_an_interrupted_training_ends_as_if_it_had_not_been(loader: Any, iteration: int, tracking: str) -> None:
    whole = Loop(loader=loader).run()
    with pytest.raises(SystemExit) as stopped:
        Loop(loader=loader, at=(iteration, sent(signal.SIGTERM))).run()
    assert stopped.value.code == 143
    run_id = newest_run()
    assert status(run_id) == "KILLED"
    assert Origin.read(Address(run_id)).manifest.step == iteration
    again = Loop(f"mltrain:{run_id}", loader=loader).run()
    assert (again.saver.run_id, status(run_id)) == (run_id, "FINISHED")
    assert identical(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())
    assert points(run_id) == points(str(whole.saver.run_id))
    assert [step for step, _ in points(run_id)["loss"]] == list(range(1, 31))


def test_a_loader_without_a_position_continues_from_the_end_of_an_epoch(tracking: str) -> None:
    options: dict[str, Any] = {"loader": plain, "every": Events.EPOCH_COMPLETED}
    whole = Loop(**options).run()
    with pytest.raises(ZeroDivisionError):
        Loop(**options, at=(16, lambda _: 1 / 0)).run()
    run_id = newest_run()
    assert status(run_id) == "FAILED"
    again = Loop(f"mltrain:{run_id}", **options).run()
    assert identical(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert points(run_id) == points(str(whole.saver.run_id))


def test_what_users_do_next(tracking: str) -> None:
    """One run for many statements, because a run is expensive."""
    loop = Loop().run(2)
    run_id = str(loop.saver.run_id)
    steps = [manifest.step for manifest in checkpoints(run_id)]
    assert steps[-1] == 20
    assert len(steps) >= 5  # although n_saved=1
    best = Origin.read(Address(run_id, "best")).manifest
    assert "accuracy" in best.metrics
    loop.run(3)
    assert status(run_id) == "FINISHED"
    longer = Loop(f"mltrain:{run_id}")
    longer.run(4)
    assert longer.trainer.state.iteration == 40
    assert [step for step, _ in points(run_id)["loss"]] == list(range(1, 41))
    assert [step for step, _ in points(run_id)["accuracy"]] == [10, 20, 30, 40]
    with pytest.raises(UsageError, match="has reached iteration 40, all of max_epochs=4"):
        Loop(f"mltrain:{run_id}").run(4)
    assert status(run_id) == "FINISHED"
    assert [step for step, _ in points(run_id)["loss"]] == list(range(1, 41))


def checkpoints(run_id: str) -> list[Any]:
    from mltrain.run.checkpoints import open_checkpoints

    return open_checkpoints(run_id).all()


def test_an_active_run_is_the_users_own(tracking: str) -> None:
    with mlflow.start_run() as active:
        assert Loop().run(1).saver.run_id == active.info.run_id
        assert status(active.info.run_id) == "RUNNING"


def test_an_error_that_a_handler_takes_is_a_failed_run_all_the_same(tracking: str) -> None:
    loop = Loop(at=(5, lambda _: 1 / 0))
    taken: list[BaseException] = []
    loop.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: taken.append(error))
    loop.run(1)
    assert [type(error) for error in taken] == [ZeroDivisionError]
    assert status(str(loop.saver.run_id)) == "FAILED"


def test_a_training_that_is_terminated_is_finished(tracking: str) -> None:
    for skip in (False, True):
        loop = Loop(at=(5, lambda loop, skip=skip: loop.trainer.terminate(skip_completed=skip))).run()
        assert status(str(loop.saver.run_id)) == "FINISHED"
        assert checkpoints(str(loop.saver.run_id))[-1].step == 5


def test_a_score_decides_which_one_is_best(tracking: str) -> None:
    loop = Loop(metric="goodness")
    scores = iter([1.0, 3.0, 2.0])
    handler = Checkpoint(
        loop.to_save, loop.saver, score_function=lambda _: next(scores), score_name="goodness", n_saved=9
    )
    loop.trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
    loop.run()
    assert Origin.read(Address(str(loop.saver.run_id), "best")).manifest.epoch == 2


def test_a_folder_without_any_tracking(tracking: str, tmp_path: Path) -> None:
    whole = Loop(save_dir=tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        Loop(save_dir=tmp_path / "part", at=(13, sent(signal.SIGINT))).run()
    again = Loop(f"mltrain:{tmp_path / 'part'}").run()
    assert identical(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_what_cannot_hold_is_refused_before_there_is_a_run(tracking: str) -> None:
    class Opaque:
        def state_dict(self) -> dict[str, Any]:
            return {"function": lambda: 0}

        def load_state_dict(self, state: Any) -> None:
            raise AssertionError

    with pytest.raises(UsageError, match="Expected the engine among them"):
        MltrainSaver(Engine(lambda engine, batch: None), {"model": torch.nn.Linear(1, 1)})
    with pytest.raises(UsageError, match="resume='last'"):
        Loop("last")
    with pytest.raises(RunNotFound):
        Loop(f"mltrain:{'0' * 32}")
    with pytest.raises(UnsupportedValue, match=r"opaque.*function"):
        Loop(to_save={"opaque": Opaque()}).run(1)
    assert mlflow.search_runs(["0"], output_format="list") == []
    run_id = str(Loop().run(1).saver.run_id)
    with pytest.raises(UsageError, match="lacks opaque"):
        Loop(f"mltrain:{run_id}", to_save={"opaque": Opaque()})
    assert status(run_id) == "FINISHED"
