import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from mltrain import RunHeld
from mltrain.adapters.origin import Address, Origin
from mltrain.adapters.training import Training, refuse_ranks, status_of
from mltrain.checkpoint.settings import Settings, newest_and_best
from mltrain.errors import NoCheckpoint, UnsupportedValue, UsageError

BY_LOSS = Settings(newest_and_best(5), "loss")
STATE = {"model": {"weight": torch.arange(3.0)}, "step": 1}


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((p.step, p.value) for p in mlflow.MlflowClient().get_metric_history(run_id, key))


def test_a_training_begins_and_continues_in_one_run_with_each_point_once(tracking: str) -> None:
    first = Training(settings=BY_LOSS, parameters={"lr": "0.1"})
    for step in (1, 2, 3):
        first.log({"loss": 1.0 / step, "time": float(step)}, step, timing_suffixes=("time",))
        if step < 3:
            first.save(STATE, step, 0, {"loss": 1.0 / step})
    run_id = first.location
    first.end(RuntimeError("no more memory"))
    assert mlflow.get_run(run_id).info.status == "FAILED"

    origin = Origin.read(Address(run_id[:8]))
    assert torch.equal(origin.state["model"]["weight"], STATE["model"]["weight"])
    second = Training(origin, settings=BY_LOSS, parameters={"lr": "0.2", "new": "1"})
    assert second.saved_step == 2
    for step in (3, 4):
        second.log({"loss": 1.0 / step, "time": step * 7.0}, step, timing_suffixes=("time",))
    second.save(STATE, 4, 1)
    second.end()
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert {key: run.data.params[key] for key in ("lr", "new")} == {"lr": "0.1", "new": "1"}
    assert history(run_id, "loss") == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert history(run_id, "time") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 28.0)]
    assert run.data.tags["mltrain.resumed_from"] == origin.manifest.name


def test_a_named_checkpoint_rolls_the_run_back_and_says_so(tracking: str) -> None:
    first = Training()
    for step in (1, 2, 3):
        first.save(STATE, step, 0)
    first.end()
    second = Training(Origin.read(Address(first.location, "step:1")))
    second.log({"loss": 0.5}, 2)
    second.save(STATE, 2, 0)
    second.end()
    assert mlflow.get_run(first.location).data.tags["mltrain.rewound.2"] == "1"
    assert Origin.read(Address(first.location)).manifest.name == "step-000000002-a02"


def test_what_cannot_be_saved_is_refused_before_there_is_a_run(tracking: str) -> None:
    with pytest.raises(UnsupportedValue, match="loss_fn"):
        Training(state={"hyper_parameters": {"loss_fn": object()}})
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_an_active_run_with_checkpoints_is_not_begun_anew(tracking: str) -> None:
    with mlflow.start_run() as active:
        training = Training()
        training.save(STATE, 1, 0)
        training.end()
        tags = mlflow.get_run(active.info.run_id).data.tags
        with pytest.raises(UsageError, match=f"continue from mltrain:{active.info.run_id}"):
            Training()
        assert mlflow.get_run(active.info.run_id).data.tags == tags
        assert mlflow.get_run(active.info.run_id).info.status == "RUNNING"


def test_a_checkpoint_saved_since_the_origin_was_read_is_not_abandoned(tracking: str) -> None:
    first = Training()
    first.save(STATE, 1, 0)
    first.end()
    stale = Origin.read(Address(first.location))
    other = Training(Origin.read(Address(first.location)))
    other.save(STATE, 2, 0)
    other.end()
    with pytest.raises(RunHeld, match="has saved step-000000002-a02"):
        Training(stale)
    assert mlflow.get_run(first.location).info.status == "FINISHED"


def test_a_folder_takes_the_place_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # nobody asks it
    folder = tmp_path / "checkpoints"
    training = Training(save_dir=folder)
    training.log({"loss": 1.0}, 1)
    training.save(STATE, 1, 1, kind="epoch")
    training.end()
    with pytest.raises(UsageError, match=f"continue from mltrain:{folder}"):
        Training(save_dir=folder)
    again = Training(Origin.read(Address(training.location)))
    again.save(STATE, 2, 2, kind="epoch")
    again.end()
    assert Origin.read(Address(str(folder), "epoch:2")).manifest.step == 2
    with pytest.raises(NoCheckpoint):
        Origin.read(Address(str(tmp_path / "nowhere")))


def test_requests_to_stop_wait_from_begin_to_end(tracking: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    training = Training()
    signal.raise_signal(signal.SIGTERM)
    assert training.stop.reason == "SIGTERM"
    training.end(KeyboardInterrupt())
    assert signal.getsignal(signal.SIGTERM) is before
    assert mlflow.get_run(training.location).info.status == "KILLED"


class Stopping(dict[str, str]):
    """Parameters whose reading is interrupted by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(lr="0.1")
        self._number = number

    def items(self) -> Any:
        signal.raise_signal(self._number)
        return super().items()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_while_the_run_is_opened_withdraws_it(number: int, tracking: str) -> None:
    before = signal.getsignal(number)
    first = Training()
    first.save(STATE, 1, 0)
    first.end()
    for origin in (None, Origin.read(Address(first.location))):
        with pytest.raises(BaseException) as stopped:
            Training(origin, parameters=Stopping(number))
        assert isinstance(stopped.value, KeyboardInterrupt if number == signal.SIGINT else SystemExit)
        assert getattr(stopped.value, "code", 143) == 143
        assert signal.getsignal(number) is before
    assert [run.info.run_id for run in mlflow.search_runs(["0"], output_format="list")] == [first.location]
    assert mlflow.get_run(first.location).info.status == "FINISHED"


def test_an_exception_decides_the_status() -> None:
    assert [status_of(error) for error in (None, KeyboardInterrupt(), SystemExit(143), ValueError())] == [
        "FINISHED",
        "KILLED",
        "KILLED",
        "FAILED",
    ]


def test_several_processes_are_refused() -> None:
    refuse_ranks(1, "Ignite")
    with pytest.raises(UsageError, match="Ignite trains in 2 processes"):
        refuse_ranks(2, "Ignite")


def test_a_request_to_stop_closes_the_run_before_it_ends_the_process(tracking: str) -> None:
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        training = Training()
        training.save(STATE, 1, 0, kind="interrupted")
        signal.raise_signal(number)
        training.stop.hurry.set()
        with pytest.raises(kind):
            training.leave()
        assert mlflow.get_run(training.location).info.status == "KILLED"
