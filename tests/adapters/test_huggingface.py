"""``MltrainCallback`` in a Trainer of this process: what it records, what it refuses, how a run ends."""

import os
import signal
from pathlib import Path

import mlflow
import pytest
from transformers import EarlyStoppingCallback

from mltrain.adapters.huggingface import MltrainCallback, restore
from mltrain.errors import UsageError
from mltrain.run.checkpoints import open_checkpoints
from tests.support import huggingface as engine
from tests.support.equality import identical
from tests.support.huggingface import At, history, raising, steps, trainer
from tests.support.recorded import status

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def test_a_training_is_a_run_with_its_checkpoints_parameters_and_curves(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()
    training = trainer(tmp_path, callback, save_total_limit=2)
    training.train()
    assert status(callback.run_id) == "FINISHED"
    assert [step for step, _ in steps(callback.run_id)][-2:] == [21, 24]
    run = mlflow.get_run(str(callback.run_id))
    assert run.data.params["save_steps"] == "3"
    logged = [entry for entry in training.state.log_history if "loss" in entry]
    curves = history(run.info.run_id)
    assert curves["loss"] == [(entry["step"], entry["loss"]) for entry in logged]
    assert len(curves["epoch"]) == len({step for step, _ in curves["epoch"]}), "logged twice a step, recorded once"
    newest = open_checkpoints(run.info.run_id).first("latest")
    assert newest.metrics["eval_loss"] == curves["eval_loss"][-1][1]
    stored = {name.rpartition(".")[2] for one in open_checkpoints(run.info.run_id).all() for name in one.files}
    assert stored <= {"safetensors", "json"}


@pytest.mark.parametrize("error", [ValueError("no more memory"), KeyboardInterrupt()], ids=["an error", "an interrupt"])
def test_a_training_that_raises_is_continued_as_the_same_run(
    error: BaseException, tracking: str, tmp_path: Path
) -> None:
    undisturbed = MltrainCallback()
    trainer(tmp_path / "a", undisturbed).train()
    callback = MltrainCallback()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(type(error)):
        trainer(tmp_path / "b", callback, At(11, raising(error))).train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert status(callback.run_id) == ("FAILED" if isinstance(error, ValueError) else "KILLED")
    again = MltrainCallback()
    trainer(tmp_path / "c", again).train(resume_from_checkpoint=restore(callback.run_id))
    assert again.run_id == callback.run_id
    assert status(again.run_id) == "FINISHED"
    assert history(str(again.run_id)) == history(str(undisturbed.run_id))
    ended = [open_checkpoints(str(one.run_id)).load("latest")[1] for one in (undisturbed, again)]
    for part in ("model", "optimizer", "scheduler", "rng"):
        assert identical(ended[0][part], ended[1][part]), part
    assert ended[0]["trainer"]["global_step"] == engine.STEPS


def test_a_signal_saves_ends_the_training_and_the_run_is_killed(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()
    stop = At(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    training = trainer(tmp_path, stop, callback, save_strategy="no", enable_jit_checkpoint=True)
    handler = signal.getsignal(signal.SIGTERM)
    assert handler is signal.SIG_DFL, "the Trainer's own handler, which no callback hears of, is gone"
    training.train()
    assert status(callback.run_id) == "KILLED"
    assert steps(callback.run_id) == [(7, "interrupted")]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_each_training_from_step_0_has_a_run_of_its_own(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()
    training = trainer(tmp_path, callback, max_steps=3)
    training.train()
    first = callback.run_id
    training.train()
    assert callback.run_id != first
    training.train(resume_from_checkpoint=restore(first))
    assert callback.run_id == first
    assert [status(one) for one in (first, callback.run_id)] == ["FINISHED", "FINISHED"]
    for points in history(str(first)).values():
        assert len({step for step, _ in points}) == len(points), "a training that was complete adds no point twice"


def test_a_run_is_not_begun_anew(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()
    trainer(tmp_path, callback, max_steps=3).train()
    before = mlflow.get_run(str(callback.run_id))
    with pytest.raises(UsageError, match=r"has checkpoints up to step 3, and this training begins at step 0"):
        trainer(tmp_path / "b", MltrainCallback(callback.run_id), max_steps=6).train()
    after = mlflow.get_run(str(callback.run_id))
    assert after.data.tags == before.data.tags
    assert after.info.status == "FINISHED"


def test_more_steps_may_be_asked_for(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()
    trainer(tmp_path, callback, max_steps=4).train()
    trainer(tmp_path / "b", callback, max_steps=8).train(resume_from_checkpoint=restore(callback.run_id))
    assert steps(callback.run_id)[-1][0] == 8
    assert [step for step, _ in history(str(callback.run_id))["loss"]] == [2, 4, 6, 8]


@pytest.mark.parametrize("report_to", ["mlflow", "none"])
def test_the_active_run_is_used_and_its_status_left_to_its_owner(report_to: str, tracking: str, tmp_path: Path) -> None:
    mlflow.autolog(silent=True)  # which adds what report_to="mlflow" would
    callback = MltrainCallback()
    try:
        with mlflow.start_run() as active:
            trainer(tmp_path, callback, report_to=report_to).train()
            assert mlflow.get_run(active.info.run_id).info.status == "RUNNING"
    finally:
        mlflow.autolog(disable=True, silent=True)
    assert callback.run_id == active.info.run_id
    assert len(mlflow.search_runs(["0"], output_format="list")) == 1
    for key, points in history(active.info.run_id).items():
        assert len({step for step, _ in points}) == len(points), f"{key} is recorded once, beside report_to='mlflow'"


def test_an_integration_that_has_opened_a_run_is_refused(tracking: str, tmp_path: Path) -> None:
    training = trainer(tmp_path, report_to="mlflow")
    training.add_callback(MltrainCallback())
    with pytest.raises(UsageError, match="report_to='none'"):
        training.train()


def test_a_callback_may_be_added_later(tracking: str, tmp_path: Path) -> None:
    training, callback = trainer(tmp_path, max_steps=3), MltrainCallback()
    training.add_callback(callback)
    training.train()
    assert status(callback.run_id) == "FINISHED"


def test_a_training_that_was_lost_sight_of_is_failed(tracking: str, tmp_path: Path) -> None:
    training, callback = trainer(tmp_path, At(2, raising(ValueError("at 2"))), max_steps=3), MltrainCallback()
    training.callback_handler.add_callback(callback)
    with pytest.raises(ValueError, match="at 2"):
        training.train()  # was called before the callback could watch it
    lost = callback.run_id
    assert status(lost) == "RUNNING"
    trainer(tmp_path / "b", callback, max_steps=3).train()
    assert status(lost) == "FAILED"
    assert status(callback.run_id) == "FINISHED"


def test_several_processes_are_refused_before_anything_is_written(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.TrainingArguments, "world_size", 2)
    with pytest.raises(UsageError, match="The Trainer trains in 2 processes"):
        trainer(tmp_path, MltrainCallback())
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_a_stop_of_the_users_own_is_a_finished_run(tracking: str, tmp_path: Path) -> None:
    callback, early = MltrainCallback(), EarlyStoppingCallback(1)
    options = {"metric_for_best_model": "loss", "learning_rate": 0.5, "save_steps": 5, "load_best_model_at_end": True}
    training = trainer(tmp_path, callback, early, num_train_epochs=30, **options)
    training.train()
    assert training.state.global_step < training.state.max_steps
    assert status(callback.run_id) == "FINISHED"
