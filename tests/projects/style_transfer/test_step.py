from pathlib import Path
from typing import Any

import pytest
import torch

from mltrain import Task
from mltrain.errors import UsageError
from tests.projects.style_transfer.conftest import built, quick, train


def of(styles: Path, **overrides: Any) -> Task:
    return built(quick(image_dir=styles, **overrides))


def test_the_energy_comes_in_when_the_anchor_is_set(styles: Path) -> None:
    said = train(of(styles, epochs=2), 2)
    assert ["swd" in step for step in said] == [False] * 5 + [True] * 5
    assert all(step["loss"] == pytest.approx(step["flow"]) for step in said[:5])
    late = said[-1]
    assert late["loss"] == pytest.approx(late["flow"] + late["swd"] + late["ssm"], rel=1e-5)


def test_a_resume_knows_how_far_the_anchor_is(styles: Path) -> None:
    first = of(styles, epochs=2)
    train(first, 1)
    second = of(styles, epochs=2)
    for name, part in second.step.parts().items():
        part.load_state_dict(first.step.parts()[name].state_dict())
    batch = next(iter(second.loader))
    assert "swd" in second.step(batch)


def test_without_weights_there_is_no_energy(styles: Path) -> None:
    said = train(of(styles, epochs=2, w_style=0, w_content=0), 2)
    assert all(step["loss"] == step["flow"] for step in said)


def test_the_energy_cannot_drown_the_anchor(styles: Path) -> None:
    task = of(styles, epochs=1, anchor_epochs=0, w_style=1e6, clip=0.5)
    batch = next(iter(task.loader))
    said = {name: float(value) for name, value in task.step(batch).items()}
    assert said["energy_norm"] > 100
    total = torch.stack([p.grad.norm() for p in task.step.net.parameters() if p.grad is not None]).norm()
    assert float(total) <= 0.5 + 1e-4


def test_the_codec_is_not_trained(styles: Path) -> None:
    task = of(styles, epochs=2)
    before = {name: value.clone() for name, value in task.step.codec.state_dict().items()}
    train(task, 2)
    assert all(torch.equal(before[name], value) for name, value in task.step.codec.state_dict().items())


def test_learning_lowers_both_the_flow_loss_and_the_distance_to_the_style(styles: Path) -> None:
    task = of(styles, epochs=16, anchor_epochs=8, batch_size=4, width=16, lr=5e-3, ode_integration_steps=2)
    flow = [step["flow"] for step in train(task, 16)]
    assert sum(flow[-10:]) < 0.92 * sum(flow[:10])
    assert task.evaluate is not None
    scores = task.evaluate()
    assert scores["val/swd_train"] < 0.8 * scores["val/swd_train_identity"]


def test_half_precision_needs_a_gpu_and_bfloat16_does_not(styles: Path) -> None:
    task = of(styles, epochs=2, amp="bf16", anchor_epochs=0)
    assert all(torch.isfinite(torch.tensor(step["loss"])) for step in train(task, 1))
    with pytest.raises(UsageError, match="amp=fp16 needs a CUDA device"):
        task.step.prepare(torch.device("cpu"), "fp16")
