"""``MltrainCallback`` in a Trainer of this process: what it records, what it refuses, how a run ends."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback

from mltrain.adapters.huggingface import MltrainCallback, restore
from mltrain.errors import NoCheckpoint, RunHeld, UnsupportedValue, UsageError
from mltrain.manager import CheckpointManager
from mltrain.run.checkpoints import open_checkpoints
from tests.support import huggingface as engine
from tests.support.equality import identical
from tests.support.huggingface import At, Numbers, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All points of what does not tell the time."""
    client = mlflow.MlflowClient()
    clock = ("runtime", "_per_second", "total_flos", "train_loss")
    keys = [k for k in client.get_run(run_id).data.metrics if not k.startswith("system/") and not k.endswith(clock)]
    return {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}


def status(run_id: str | None) -> str:
    return str(mlflow.get_run(str(run_id)).info.status)


def steps(run_id: str | None) -> list[tuple[int, str]]:
    return [(one.step, one.kind) for one in open_checkpoints(str(run_id)).all()]


def raising(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


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


@pytest.mark.slow
def test_the_trainers_own_folder_continues_the_same_run(tracking: str, tmp_path: Path) -> None:
    undisturbed, callback, again = MltrainCallback(), MltrainCallback(), MltrainCallback()
    trainer(tmp_path / "a", undisturbed).train()
    with pytest.raises(ValueError, match="at 11"):
        trainer(tmp_path / "b", callback, At(11, raising(ValueError("at 11")))).train()
    trainer(tmp_path / "b", again).train(resume_from_checkpoint=True)
    assert again.run_id == callback.run_id
    assert history(str(again.run_id)) == history(str(undisturbed.run_id))


def test_a_folder_newer_than_the_runs_newest_checkpoint_leaves_no_gap(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, again = MltrainCallback(), MltrainCallback()
    saved = MltrainCallback.on_save

    def not_at_9(self: Any, args: Any, state: Any, control: Any, **live: Any) -> None:
        if state.global_step != 9:
            saved(self, args, state, control, **live)

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="at 11"):
        patched.setattr(MltrainCallback, "on_save", not_at_9)
        trainer(tmp_path, callback, At(11, raising(ValueError("at 11")))).train()
    assert steps(callback.run_id)[-1][0] == 6
    trainer(tmp_path, again).train(resume_from_checkpoint=True)
    curve = history(str(callback.run_id))["loss"]
    assert [step for step, _ in curve] == list(range(2, 25, 2))


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


class Unstorable(torch.optim.AdamW):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "helper": object()}


def test_what_cannot_be_stored_is_refused_by_name_before_there_is_a_run(tracking: str, tmp_path: Path) -> None:
    training = trainer(tmp_path, MltrainCallback())
    training.optimizer = Unstorable(training.model.parameters())
    with pytest.raises(UnsupportedValue, match=r"optimizer\.helper is a"):
        training.train()
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_several_processes_are_refused_before_anything_is_written(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.TrainingArguments, "world_size", 2)
    with pytest.raises(UsageError, match="The Trainer trains in 2 processes"):
        trainer(tmp_path, MltrainCallback())
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.slow
def test_the_best_model_is_there_at_the_end_of_a_training_that_was_continued(tracking: str, tmp_path: Path) -> None:
    options = {"load_best_model_at_end": True, "save_steps": 5, "learning_rate": 0.5, "save_total_limit": 1}
    undisturbed, callback = MltrainCallback(), MltrainCallback()
    whole = trainer(tmp_path / "a", undisturbed, **options)
    whole.train()
    assert whole.state.best_global_step < 20, "a rate of 0.5 makes it worse"
    with pytest.raises(ValueError, match="at 22"):
        trainer(tmp_path / "b", callback, At(22, raising(ValueError("at 22"))), **options).train()
    folder = restore(callback.run_id)
    assert folder is not None
    assert Path(folder).name == "checkpoint-20"
    resumed = trainer(tmp_path / "c", MltrainCallback(), **options)
    resumed.train(resume_from_checkpoint=folder)
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "epoch", "eval_strategy": "epoch", "gradient_accumulation_steps": 2},
        pytest.param({"save_strategy": "best", "metric_for_best_model": "loss", "bf16": True}, marks=pytest.mark.slow),
        pytest.param(
            {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss", "save_steps": 5},
            marks=pytest.mark.slow,
        ),
        pytest.param({"save_only_model": True, "optim": "adafactor"}, marks=pytest.mark.slow),
    ],
    ids=["epochs, accumulation", "best, bf16", "a schedule with state", "weights only, adafactor"],
)
def test_every_way_to_save_continues_exactly(options: dict[str, Any], tracking: str, tmp_path: Path) -> None:
    undisturbed, callback, again = MltrainCallback(), MltrainCallback(), MltrainCallback()
    whole = trainer(tmp_path / "a", undisturbed, **options)
    whole.train()
    at = whole.state.max_steps - 2
    with pytest.raises(ValueError, match="before the end"):
        trainer(tmp_path / "b", callback, At(at, raising(ValueError("before the end"))), **options).train()
    folder = restore(callback.run_id)
    assert folder is not None
    resumed = trainer(tmp_path / "c", again, **options)
    resumed.train(resume_from_checkpoint=folder)
    assert identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert history(str(again.run_id)) == history(str(undisturbed.run_id))


class Tied(nn.Module):
    """An embedding that is also the last layer, over a body that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16).requires_grad_(False)
        self.adapter = nn.Linear(16, 4, bias=False)
        self.first = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.last(torch.relu(self.first(self.adapter(self.body(inputs)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_tied_and_frozen_weights_are_restored(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()

    def tied(name: str, *callbacks: TrainerCallback) -> Any:
        engine.seeded()
        return trainer(
            tmp_path / name, *callbacks, net=Tied().to(torch.bfloat16), data=Rounded(64, 0), eval_strategy="no"
        )

    with pytest.raises(ValueError, match="at 11"):  # the Trainer's own files cannot hold tied weights of such a model
        tied("b", callback, NoFiles(), At(11, raising(ValueError("at 11")))).train()
    whole = tied("a", MltrainCallback(), NoFiles())
    whole.train()
    resumed = tied("c", MltrainCallback(), NoFiles())
    resumed.train(resume_from_checkpoint=restore(callback.run_id))
    assert resumed.model.last.weight is resumed.model.first.weight
    assert identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


class Rounded(Numbers):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "inputs": self.inputs[index].bfloat16()}


class NoFiles(TrainerCallback):  # type: ignore[misc]
    """Leaves the Trainer's own files away, which safetensors refuses to write of shared tensors."""

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from mltrain.adapters.huggingface_parts import calling_trainer

        calling_trainer().save_model = lambda folder, **_: Path(folder).mkdir(parents=True)


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([Numbers(400, 0)[index] for index in range(400)])


@pytest.mark.slow
def test_a_stream_is_continued_within_its_first_pass(tracking: str, tmp_path: Path) -> None:
    undisturbed, callback, again = MltrainCallback(), MltrainCallback(), MltrainCallback()
    trainer(tmp_path / "a", undisturbed, data=Stream(), max_steps=20).train()
    with pytest.raises(ValueError, match="at 11"):
        trainer(tmp_path / "b", callback, At(11, raising(ValueError("at 11"))), data=Stream(), max_steps=20).train()
    trainer(tmp_path / "c", again, data=Stream(), max_steps=20).train(resume_from_checkpoint=restore(callback.run_id))
    assert history(str(again.run_id)) == history(str(undisturbed.run_id))


def test_a_stop_of_the_users_own_is_a_finished_run(tracking: str, tmp_path: Path) -> None:
    callback, early = MltrainCallback(), EarlyStoppingCallback(1)
    options = {"metric_for_best_model": "loss", "learning_rate": 0.5, "save_steps": 5, "load_best_model_at_end": True}
    training = trainer(tmp_path, callback, early, num_train_epochs=30, **options)
    training.train()
    assert training.state.global_step < training.state.max_steps
    assert status(callback.run_id) == "FINISHED"


def test_restore_refuses_what_it_cannot_continue(tracking: str, tmp_path: Path) -> None:
    assert restore(None) is None
    with CheckpointManager() as manager:
        assert restore_refused(RunHeld, manager.run.id)
        manager.save({"model": {"weight": torch.ones(2)}}, step=1)
    assert restore_refused(UsageError, manager.run.id, match="Expected a checkpoint that MltrainCallback saved")
    assert restore_refused(NoCheckpoint, manager.run.id, "step:7")
    with mlflow.start_run() as empty:
        pass
    assert restore(empty.info.run_id) is None
    callback = MltrainCallback(empty.info.run_id)
    trainer(tmp_path, callback, max_steps=3).train(resume_from_checkpoint=restore(empty.info.run_id))
    assert callback.run_id == empty.info.run_id


def restore_refused(error: type[Exception], *words: str, match: str | None = None) -> bool:
    with pytest.raises(error, match=match):
        restore(*words)
    return True


def test_what_is_restored_is_verified_and_replaces_what_was_restored_before(tracking: str, tmp_path: Path) -> None:
    callback = MltrainCallback()
    trainer(tmp_path, callback, max_steps=6).train()
    newest = open_checkpoints(str(callback.run_id))
    file = Path(str(newest.store.artifacts.local_root), "checkpoints", newest.first("latest").name, "model.safetensors")
    first = restore(callback.run_id)
    assert first is not None
    assert json.loads(Path(first, "trainer_state.json").read_text())["global_step"] == 6
    file.write_bytes(bytes(reversed(file.read_bytes())))
    again = restore(callback.run_id)
    assert again is not None
    assert Path(again).name == "checkpoint-3", "the newest is damaged, and the one before is used"
    assert [folder.name for folder in Path(again).parent.iterdir()] == ["checkpoint-3"]
