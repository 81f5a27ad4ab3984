"""Runs in which other trainers have left checkpoints; each is really made by that trainer."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mltrain.commands.foreign_run import read_folder, read_run
from mltrain.commands.import_checkpoint import import_run
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, UsageError
from mltrain.run.checkpoints import open_checkpoints
from mltrain.tracking.client import connect
from tests.support.database import use_database
from tests.support.equality import identical
from tests.support.workplace import Workplace

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store for all runs of this module."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patched:
        uri = use_database(patched, folder)
        patched.chdir(folder)
        yield uri


def lightning_module() -> Any:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.mse_loss(self.net(batch), batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return Module()


def fit(module: Any, folder: Path, epochs: int = 2, **options: Any) -> None:
    import lightning.pytorch as pl

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=str(folder), **quiet, **options).fit(
            module, torch.utils.data.DataLoader(torch.randn(12, 2), batch_size=4)
        )


def test_what_lightnings_mlflow_logger_left(tracking: str, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=tracking, log_model="all")
    module = lightning_module()
    fit(module, tmp_path, logger=logger, callbacks=[ModelCheckpoint(tmp_path / "c", save_top_k=-1)])
    found = read_run(connect(), str(logger.run_id))
    assert found.source == f"{logger.run_id}/epoch=1-step=6/epoch=1-step=6.ckpt"
    assert identical(found.foreign.model, dict(module.state_dict()))
    assert found.foreign.step == 6
    assert found.foreign.optimizer["param_groups"]
    assert [line.partition(":")[0] for line in found.skipped] == ["epoch=0-step=3/epoch=0-step=3.ckpt"]
    older = read_run(connect(), f"{logger.run_id}/epoch=0-step=3")
    assert older.foreign.step == 3

    report = import_run(str(logger.run_id), connect(), None, {}, None)
    imported = open_checkpoints(report.run_id)
    assert identical(imported.load("latest")[1]["model"], dict(module.state_dict()))
    assert mlflow.get_run(report.run_id).data.tags["mltrain.imported"] == found.source


@pytest.mark.slow
def test_what_mlflows_autologging_left(tracking: str, tmp_path: Path) -> None:
    mlflow.pytorch.autolog(checkpoint=True, checkpoint_save_best_only=False, log_models=True)
    module = lightning_module()
    try:
        with mlflow.start_run() as run:
            fit(module, tmp_path, logger=False, enable_checkpointing=False)
    finally:
        mlflow.pytorch.autolog(disable=True)
    found = read_run(connect(), run.info.run_id)
    assert identical(found.foreign.model, dict(module.state_dict()))
    assert found.foreign.optimizer is not None


def test_a_state_that_was_logged_by_hand(tracking: str) -> None:
    net = nn.Linear(2, 2)
    with mlflow.start_run() as run:
        mlflow.pytorch.log_state_dict({"model": net.state_dict(), "epoch": 4}, artifact_path="mine")
    found = read_run(connect(), run.info.run_id[:10])
    assert found.source == f"{run.info.run_id}/mine/state_dict.pth"
    assert found.foreign.epoch == 4


def test_a_pickled_model_is_refused_and_not_run(tracking: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "model.pth"), "model/data")
    with pytest.raises(DamagedCheckpoint, match=r"model/data/model\.pth of run .*asks for .*Linear.*Try: torch\.save"):
        read_run(connect(), run.info.run_id)


def test_a_run_without_checkpoints_of_others_is_told_apart(tracking: str) -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 1.0)
    with pytest.raises(NoCheckpoint, match=f"mltrain checkpoints {run.info.run_id}"):
        read_run(connect(), run.info.run_id)
    with pytest.raises(NoCheckpoint, match="below model"):
        read_run(connect(), f"{run.info.run_id}/model")


@pytest.mark.slow
def test_what_the_trainer_of_transformers_left_is_continued_by_it(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mltrain.adapters.huggingface import MltrainCallback, restore
    from tests.support.huggingface import trainer

    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "1")
    with mlflow.start_run() as run:
        whole = trainer(tmp_path, report_to="mlflow", max_steps=6, save_steps=3)
        whole.train()
    monkeypatch.delenv("HF_MLFLOW_LOG_ARTIFACTS")
    found = read_run(connect(), run.info.run_id)
    assert found.source.endswith("checkpoint-6")
    assert identical(dict(sorted(found.foreign.model.items())), dict(sorted(whole.model.state_dict().items())))
    report = import_run(run.info.run_id, connect(), None, {}, None)
    curve = mlflow.MlflowClient().get_metric_history(report.run_id, "loss")
    assert [point.step for point in curve] == [2, 4, 6]
    callback = MltrainCallback()
    longer = trainer(tmp_path / "b", callback, max_steps=8)
    longer.train(resume_from_checkpoint=restore(report.run_id))
    assert callback.run_id == report.run_id
    assert [point.step for point in mlflow.MlflowClient().get_metric_history(report.run_id, "loss")] == [2, 4, 6, 8]


def test_the_command_imports_a_run(workplace: Workplace, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(workplace.uri)
    run_id = client.create_run("0").info.run_id
    torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": 4}, tmp_path / "epoch=4.pth")
    client.log_artifact(run_id, str(tmp_path / "epoch=4.pth"), "mine")
    done = workplace.mltrain("import", run_id, "--json")
    assert done.code == 0, done.err
    assert done.json["taken"][0] == f"from {run_id}/mine/epoch=4.pth"
    (row,) = workplace.mltrain("checkpoints", done.json["run_id"], "--json").json
    assert (row["kind"], row["epoch"]) == ("imported", 4)
    nothing = workplace.mltrain("import", f"{run_id}/elsewhere")
    assert nothing.code == 3
    assert "no checkpoint of another trainer below elsewhere" in nothing.err


def test_all_shards_of_a_model_folder_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    for number in (1, 2):
        shard = tmp_path / f"model-0000{number}-of-00002.safetensors"
        save_file({f"layer{number}.weight": torch.full((2,), float(number))}, shard)
    weights = read_folder(tmp_path).model
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        "layer1.weight": [1, 1],
        "layer2.weight": [2, 2],
    }
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match="lacks the shards 1 of its weights"):
        read_folder(tmp_path)
    with pytest.raises(UsageError, match=r"holds no weights\. Expected model\.safetensors"):
        read_folder(tmp_path.parent)


def test_a_folder_of_several_models_or_of_a_checkpoint_of_mltrain_is_not_taken_for_shards(tmp_path: Path) -> None:
    for name in ("best", "last"):
        save_file({"weight": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match=r"holds weight in more than one file, again in last\.safetensors"):
        read_folder(tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(UsageError, match=r"is a checkpoint of mltrain\. Try: mltrain import .*/model\.safetensors"):
        read_folder(tmp_path)


def test_a_shard_without_weights_of_its_own_is_read_as_a_single_file_is(tmp_path: Path) -> None:
    torch.save(torch.ones(1), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="holds a Tensor"):
        read_folder(tmp_path)
    torch.save({"state_dict": {"weight": torch.ones(1)}, "epoch": 1}, tmp_path / "pytorch_model.bin")
    assert list(read_folder(tmp_path).model) == ["weight"]
