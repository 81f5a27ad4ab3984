"""``save``, ``load`` and the tracker in a loop in-process."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mltrain import CheckpointManager
from mltrain.adapters.accelerate import MltrainTracker, load, save
from mltrain.adapters.position import Position
from mltrain.errors import NoCheckpoint, StateMismatch, UnsupportedValue, UsageError
from mltrain.run.checkpoints import open_checkpoints
from tests.support.accelerate_loop import EPOCHS, STEPS, train
from tests.support.equality import identical

pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital.*:UserWarning")


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((p.step, p.value) for p in mlflow.MlflowClient().get_metric_history(run_id, key))


class Stopped(Exception):
    """What ends a loop here."""


def stopping_at(at: int) -> Any:
    def after(step: int) -> None:
        if step == at:
            raise Stopped

    return after


@pytest.mark.parametrize("kind", ["plain", "generator", "seedable", "stateful", "stream"])
def test_a_loop_that_stops_within_an_epoch_goes_on_as_if_it_had_not(kind: str, tracking: str) -> None:
    undisturbed = train(None, kind)
    runs: list[str] = []
    with pytest.raises(Stopped):
        train(None, kind, stopping_at(5), runs.append)
    assert mlflow.get_run(runs[0]).info.status == "FAILED"
    with pytest.raises(Stopped):
        train(runs[0], kind, stopping_at(19))
    train(runs[0], kind)
    assert mlflow.get_run(runs[0]).info.status == "FINISHED"
    assert [step for step, _ in history(runs[0], "loss")] == list(range(1, STEPS + 1))
    for key in ("loss", "epoch"):
        assert history(runs[0], key) == history(undisturbed, key)
    ended = [open_checkpoints(one).load("latest")[1] for one in (undisturbed, runs[0])]
    assert identical(ended[0], ended[1]), "weights, optimizer, schedule, counters and random numbers"
    assert mlflow.get_run(runs[0]).data.params["lr"] == "0.01"
    assert ended[0]["position"]["progress"][1] == EPOCHS


def prepared(folder: Path, **options: Any) -> tuple[Accelerator, CheckpointManager, Any]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, **options)
    net = accelerator.prepare(nn.Linear(2, 2))
    return accelerator, CheckpointManager(save_dir=folder), net


def test_a_folder_takes_the_place_of_a_run(tmp_path: Path) -> None:
    accelerator, manager, net = prepared(tmp_path / "folder")
    position = load(accelerator, manager)
    assert (position.step, position.epoch, position.batch) == (0, 0, 0)
    position.step = 3
    save(accelerator, manager, position)
    before = net.weight.detach().clone()
    nn.init.zeros_(net.weight)
    assert load(accelerator, manager).step == 3
    assert torch.equal(net.weight, before)
    with pytest.raises(NoCheckpoint):
        load(accelerator, manager, "step:7")
    with pytest.raises(UsageError, match="no tracking server"):
        MltrainTracker(manager)
    manager.close()


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    accelerator, manager, _ = prepared(tmp_path / "folder")
    save(accelerator, manager, Position())
    manager.close()
    other = Accelerator(cpu=True)
    other.free_memory()
    net, _ = other.prepare(nn.Linear(2, 2), nn.Linear(3, 3))
    before = net.weight.detach().clone()
    again = CheckpointManager(save_dir=tmp_path / "folder")
    with pytest.raises(StateMismatch, match="model_1"):
        load(other, again)
    assert torch.equal(net.weight, before)
    again.close()


def test_what_others_saved_is_refused(tmp_path: Path) -> None:
    accelerator, manager, _ = prepared(tmp_path / "folder")
    manager.save({"model": {"weight": torch.ones(2)}}, step=1)
    with pytest.raises(UsageError, match="Expected a checkpoint that save"):
        load(accelerator, manager)
    manager.close()


class Odd:
    def state_dict(self) -> dict[str, Any]:
        return {"helper": object()}

    def load_state_dict(self, state: Any) -> None:
        """Nothing is kept."""


def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path) -> None:
    accelerator, manager, _ = prepared(tmp_path / "folder")
    accelerator.register_for_checkpointing(Odd())
    with pytest.raises(UnsupportedValue, match=r"registered\.helper is a"):
        load(accelerator, manager)
    with pytest.raises(UnsupportedValue, match=r"registered\.helper is a"):
        save(accelerator, manager, Position())
    assert manager.checkpoints() == []
    manager.close()


def test_gradients_that_wait_are_no_state_to_save(tmp_path: Path) -> None:
    accelerator, manager, net = prepared(tmp_path / "folder", gradient_accumulation_steps=2)
    with accelerator.accumulate(net), pytest.raises(UsageError, match="accumulated and not applied"):
        save(accelerator, manager, Position())
    manager.close()


def test_several_processes_and_nothing_prepared_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, manager, _ = prepared(tmp_path / "folder")
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UsageError, match="2 process"):
        save(accelerator, manager, Position())
    monkeypatch.undo()
    accelerator.free_memory()
    with pytest.raises(UsageError, match="prepared nothing"):
        load(accelerator, manager)
    manager.close()


def test_a_point_needs_a_step_and_a_number(tracking: str) -> None:
    with CheckpointManager() as manager:
        accelerator = Accelerator(cpu=True, log_with=MltrainTracker(manager))
        accelerator.init_trackers("tests")
        with pytest.raises(UsageError, match=r"step=position\.step"):
            accelerator.log({"loss": 1.0})
        with pytest.raises(UsageError, match="one real number"):
            accelerator.log({"loss": "low"}, step=1)
        accelerator.log({"loss": 1.0}, step=1)
        accelerator.log({"loss": 1.0}, step=1)
        assert accelerator.get_tracker("mltrain", unwrap=True) is manager.run
    assert history(manager.run.id, "loss") == [(1, 1.0)]
