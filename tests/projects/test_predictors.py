"""Every system states input and output of its model: MLflow alone loads what is exported."""

from importlib import import_module
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from mltrain import Task
from mltrain.tracking.mlflow_model import write
from projects.cardiac.deformation import DeformationNet, DisplacementField, RefinedFlowNet
from tests.projects.cardiac.conftest import Study, study  # noqa: F401 - a fixture

SYSTEMS = {
    "segmentation.project": {"sample": "blobs", "resize": "stretch", "image_size": 64},
    "tool_wear.project": {"cuts": 20},
    "style_transfer.project": {"image_size": 32, "num_steps": 1, "width": 8},
    "cardiac.motion": {},
    "cardiac.registration": {},
    "cardiac.infarct": {},
}


@pytest.mark.parametrize("kind", ["from no motion", "from optical flow"])
def test_the_exported_integration_gives_the_displacements_of_the_network(kind: str) -> None:
    torch.manual_seed(0)
    net = RefinedFlowNet().eval() if kind == "from optical flow" else DeformationNet("motion").eval()
    pairs = net.pairs(torch.rand(3, 1, 48, 64), torch.rand(3, 1, 48, 64))
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # an untrained field is all but zero
    with torch.no_grad():
        expected = net(pairs).field
        assert expected.abs().max() > 0.5
        assert torch.allclose(DisplacementField(net)(pairs), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("system", SYSTEMS)
def test_mlflow_predicts_what_the_system_predicts(system: str, study: Study, tmp_path: Path) -> None:  # noqa: F811
    module = import_module(f"projects.{system}")
    keys = {key: value for key, value in study.keys().items() if key in module.Config.model_fields}
    task: Task = module.build(module.Config.load(overrides={**SYSTEMS[system], **keys}))
    assert task.predictor is not None
    predictor, example = task.predictor()
    write(predictor, example, tmp_path / "model")
    batch = torch.cat([example, example[:1]])
    with torch.no_grad():
        expected = predictor(batch).numpy()
    predicted = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(batch.numpy())
    assert predicted.shape == expected.shape
    assert np.allclose(predicted, expected, rtol=1e-3, atol=1e-4)
