"""What only a machine with CUDA devices can show; elsewhere this file is not collected."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import mltrain
from mltrain.checkpoint.snapshot import HostBuffers
from mltrain.device import make_current, mixing
from mltrain.rng import Rng

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("number", range(torch.cuda.device_count()))
def test_a_snapshot_is_complete_before_the_next_kernel_changes_what_was_copied(number: int) -> None:
    weight = torch.zeros(2**26, device=f"cuda:{number}")
    other = torch.eye(2048, device=weight.device)
    buffers = HostBuffers()
    buffers.copy({"w": weight})  # takes the page-locked memory, so that the next copy is queued at once
    for _ in range(20):
        other = other @ other  # keeps the device busy, so that the copy is still in its queue when the call returns
    weight += 1
    copied = buffers.copy({"w": weight})["w"]
    assert bool((copied == 1).all())


def test_the_last_device_computes_and_its_generator_goes_on() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    make_current(device)
    state = Rng().state_dict()
    expected = torch.rand(3, device="cuda")
    assert expected.device == device
    Rng().load_state_dict(state)
    assert torch.rand(3, device="cuda").equal(expected)


README = Path(__file__).parent.parent.parent / "README.md"


def test_the_readme_project_trains_and_evaluates_on_the_device() -> None:
    project = ModuleType("readme_project")
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    exec(code, vars(project))
    config = project.Config(epochs=2, device="cuda")
    trainer = mltrain.Trainer(project.build(config), config)
    list(trainer.steps())
    assert [row["val/loss"] > 0 for row in trainer.history.rows] == [True, True]


def test_an_evaluation_mixes_tensors_of_both_and_hands_them_to_numpy() -> None:
    net = torch.nn.Linear(3, 2).cuda()
    inputs, labels = torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)
    with torch.no_grad(), mixing(torch.device("cuda")):
        output = net(inputs)
        assert output.is_cuda
        assert float(torch.nn.functional.cross_entropy(output, labels)) > 0
        assert np.asarray(output.argmax(1).numpy()).shape == (8,)
