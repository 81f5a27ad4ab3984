"""A Trainer continues exactly, from the folder that ``restore`` writes."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from mltrain.adapters.huggingface import MltrainCallback, restore
from mltrain.errors import NoCheckpoint, RunHeld, UnsupportedValue, UsageError
from mltrain.manager import CheckpointManager
from mltrain.run.checkpoints import open_checkpoints
from tests.support import huggingface as engine
from tests.support.equality import identical
from tests.support.huggingface import At, Numbers, history, raising, steps, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


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


class Unstorable(torch.optim.AdamW):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "helper": object()}


def test_what_cannot_be_stored_is_refused_by_name_before_there_is_a_run(tracking: str, tmp_path: Path) -> None:
    training = trainer(tmp_path, MltrainCallback())
    training.optimizer = Unstorable(training.model.parameters())
    with pytest.raises(UnsupportedValue, match=r"optimizer\.helper is a"):
        training.train()
    assert mlflow.search_runs(["0"], output_format="list") == []


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
    """An embedding tied to the last layer; its body is frozen."""

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
    """Writes no files of the Trainer's own. safetensors refuses to write shared tensors."""

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from mltrain.adapters.huggingface import calling_trainer

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
