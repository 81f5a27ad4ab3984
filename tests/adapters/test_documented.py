"""Executes the blocks of the engine pages with a model."""

from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from lightning.pytorch import Trainer as LightningTrainer
from torch import nn

import mltrain
from mltrain import ResumableLoader
from mltrain.adapters.ignite import MltrainSaver
from mltrain.adapters.lightning import MltrainCheckpoint
from tests.adapters.lightning_nets import Net
from tests.support.huggingface import trainer as small_trainer
from tests.support.pages import execute
from tests.support.recorded import newest_run, points, status

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("User", "Deprecation", "Future")]

DATA = torch.utils.data.TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))


def test_the_blocks_on_accelerate(tracking: str) -> None:
    def objects() -> dict[str, Any]:
        net = nn.Linear(4, 1)
        optimizer = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        loader = torch.utils.data.DataLoader(DATA, 20)
        return {"model": net, "optimizer": optimizer, "loader": loader, "schedule": schedule}

    names: dict[str, Any] = {"run_id": None, "Accelerator": partial(Accelerator, cpu=True), **objects()}

    def evaluate() -> float:
        if names["position"].epoch == 1:
            execute("accelerate", 0, names)  # within the loop of the other block, whose objects it saves
        return 0.5

    names["evaluate"] = evaluate
    execute("accelerate", 1, names)
    run_id = newest_run()
    assert status(run_id) == "FINISHED"
    assert mlflow.get_run(run_id).data.params["lr"] == "0.001"
    names.update(objects(), run_id=run_id)
    execute("accelerate", 1, names)  # continued after its last epoch: nothing is left to do
    assert names["position"].step == 20


def test_the_blocks_on_the_trainer_of_transformers(tracking: str, tmp_path: Path) -> None:
    def trainer(model: Any, callbacks: list[Any]) -> Any:
        assert model is ..., "the reader's own model, arguments and data"
        return small_trainer(tmp_path, *callbacks, num_train_epochs=1)

    names = execute("huggingface", 0, {"Trainer": trainer})
    names["run_id"] = None
    execute("huggingface", 1, names)
    names = execute("huggingface", 0, {"Trainer": trainer})
    names["run_id"] = newest_run()
    execute("huggingface", 1, names)
    assert names["trainer"].state.global_step == 8
    assert status(newest_run()) == "FINISHED"


def test_the_blocks_on_ignite(tracking: str) -> None:
    def objects() -> dict[str, Any]:
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(engine: Engine, batch: Any) -> float:
            optimizer.zero_grad()
            loss = model(batch[0]).square().mean()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        names = {"model": model, "optimizer": optimizer, "trainer": Engine(step), "loader": ResumableLoader(DATA, 8)}
        return {
            **names,
            "to_save": dict(names),
            "Events": Events,
            "Checkpoint": Checkpoint,
            "MltrainSaver": MltrainSaver,
        }

    names = execute("ignite", 0, objects())
    execute("ignite", 2, names)
    names["trainer"].add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(names["to_save"], names["saver"]))
    names["trainer"].run(names["loader"], max_epochs=2)
    run_id = str(names["saver"].run_id)
    assert [step for step, _ in points(run_id)["loss"]] == list(range(1, 11))
    names = execute("ignite", 1, objects(), RUN_ID=run_id)
    assert names["trainer"].state.iteration == 50
    assert status(run_id) == "FINISHED"


class Validated(Net):
    """Brings its own validation data, which decides the best checkpoint."""

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(DATA, 20)


def test_the_blocks_on_lightning(tracking: str) -> None:
    names: dict[str, Any] = {
        "MltrainCheckpoint": MltrainCheckpoint,
        "mltrain": mltrain,
        "model": Validated(),
        "loader": torch.utils.data.DataLoader(DATA, 8),
    }

    def trainer(epochs: int) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return partial(LightningTrainer, accelerator="cpu", max_epochs=epochs, **quiet)

    execute("lightning", 0, names | {"Trainer": trainer(1)})["trainer"].fit(names["model"], names["loader"])
    run_id = newest_run()
    execute("lightning", 0, names := names | {"Trainer": trainer(2), "model": Validated()})
    execute("lightning", 1, names | {"RUN_ID": run_id}, **{"mltrain:RUN_ID": f"mltrain:{run_id}"})
    assert status(run_id) == "FINISHED"
    best = mltrain.load_best(run_id)
    assert all(torch.equal(value, best[name]) for name, value in names["model"].state_dict().items())
