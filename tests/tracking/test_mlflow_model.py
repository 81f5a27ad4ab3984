"""MLflow models in MLflow's own store: what other programs load, and what it leaves in the run."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from mltrain.errors import UsageError
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.mlflow_model import Source, log, model_name, refuse_name, register, write
from mltrain.tracking.registry import in_use, made_models


class Branching(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 1 if bool((inputs > 0).all()) else inputs


class OfOneLength(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.arange(len(inputs))[:, None]


class Random(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.rand_like(inputs)


class Two(nn.Module):
    def forward(self, inputs: Tensor) -> Any:
        return inputs, inputs


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_loaded_by_mlflow_alone_and_its_metrics_are_the_runs_own_points(
    server: TrackingClient, tmp_path: Path
) -> None:
    client = MlflowClient(server.uri)
    run_id = client.create_run("0").info.run_id
    for step, value in ((3, 0.5), (6, 0.25)):
        client.log_metric(run_id, "val/loss", value, step=step)
    source = Source(run_id, "0", "step-000000006-a01", 6, {"val/loss": 0.25, "never logged": 1.0})
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    example = torch.rand(2, 4)
    write(net, example, tmp_path / "model")
    assert not [file for file in (tmp_path / "model").rglob("*") if file.suffix in (".pth", ".pkl", ".pickle")]

    model_id = log(server, source, model_name("my.net"), tmp_path / "model")
    number = register(server, source, model_id, "wear", "champion")
    (model,) = client.search_logged_models(["0"])
    assert (model.name, model.source_run_id, str(model.status)) == ("my_net", run_id, "READY")
    assert [(m.key, m.value, m.step) for m in model.metrics] == [("val/loss", 0.25, 6)]
    assert [(one.model_id, one.step) for one in client.get_run(run_id).outputs.model_outputs] == [(model_id, 6)]
    points = [(p.step, p.value) for p in client.get_metric_history(run_id, "val/loss")]
    assert points == [(3, 0.5), (6, 0.25)], "no point was added"

    batch = torch.rand(5, 4)
    expected = net(batch).detach().numpy()
    place = "models:/wear@champion"
    with torch.no_grad():
        assert np.allclose(mlflow.pytorch.load_model(place)(batch).numpy(), expected, atol=1e-5)
    assert np.allclose(mlflow.pyfunc.load_model(place).predict(batch.numpy()), expected, atol=1e-5)

    assert log(server, source, "my_net", tmp_path / "model") == model_id, "a checkpoint has one LoggedModel"
    assert register(server, source, model_id, "wear", "challenger") == number
    made = made_models(server, run_id, "0")
    assert [one.checkpoint for one in made] == [source.checkpoint]
    assert in_use(server, run_id, made) == {source.checkpoint}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Branching(), "cannot be exported"),
        (OfOneLength(), "rejects a batch of 1"),
        (Random(), "other values"),
        (Two(), "returns a tuple"),
    ],
    ids=["branching", "of one length", "random", "two outputs"],
)
def test_a_module_that_others_could_not_use_is_refused(module: nn.Module, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        write(module, torch.rand(2, 3) - 0.5, tmp_path / "model")


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a.b", "50%", "it's"])
def test_a_name_that_mlflow_refuses_is_refused_before(name: str) -> None:
    with pytest.raises(UsageError, match="--register"):
        refuse_name(name, None)


@pytest.mark.parametrize("alias", ["", "a b", "v1", "3", "latest", "a" * 256])
def test_an_alias_that_mlflow_refuses_is_refused_before(alias: str) -> None:
    with pytest.raises(UsageError, match="--alias"):
        refuse_name("wear", alias)
