import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mltrain import Task
from mltrain.errors import UsageError
from projects.style_transfer.step import OVER_BUDGET, Energy
from tests.projects.style_transfer.conftest import built, quick, train


def of(styles: Path, **overrides: Any) -> Task:
    return built(quick(image_dir=styles, **overrides))


def test_the_energy_comes_in_when_the_anchor_is_set(styles: Path) -> None:
    said = train(of(styles, epochs=2, route="noise"), 2)
    assert ["swd" in step for step in said] == [False] * 5 + [True] * 5
    assert all(step["loss"] == pytest.approx(step["flow"]) for step in said[:5])
    late = said[-1]
    assert late["loss"] == pytest.approx(late["flow"] + late["swd"] + 0.5 * late["ssm"], rel=1e-5)


def test_a_resume_knows_how_far_the_anchor_is(styles: Path) -> None:
    first = of(styles, epochs=2, route="noise")
    train(first, 1)
    second = of(styles, epochs=2, route="noise")
    for name, part in second.step.parts().items():
        part.load_state_dict(first.step.parts()[name].state_dict())
    batch = next(iter(second.loader))
    assert "swd" in second.step(batch)


def test_without_weights_there_is_no_energy(styles: Path) -> None:
    said = train(of(styles, epochs=2, route="noise", w_style=0, w_content=0), 2)
    assert all(step["loss"] == step["flow"] for step in said)


def test_the_energy_cannot_drown_the_anchor(styles: Path) -> None:
    task = of(styles, epochs=1, route="noise", anchor_epochs=0, w_style=1e6, clip=0.5)
    batch = next(iter(task.loader))
    said = {name: float(value) for name, value in task.step(batch).items()}
    assert said["energy_norm"] > 100
    total = torch.stack([p.grad.norm() for p in task.step.model.parameters() if p.grad is not None]).norm()
    assert float(total) <= 0.5 + 1e-4


def test_the_codec_is_not_trained(styles: Path) -> None:
    task = of(styles, epochs=2)
    before = {name: value.clone() for name, value in task.step.codec.state_dict().items()}
    train(task, 2)
    assert all(torch.equal(before[name], value) for name, value in task.step.codec.state_dict().items())


def test_between_styles_the_energy_is_all_there_is_from_the_first_step(styles: Path) -> None:
    task = of(styles, w_style=2, w_content=0.5)
    for step in train(task, 2):
        over = max(0, step["ssm"] - task.step.energy.budget)
        assert step["loss"] == pytest.approx(2 * step["swd"] + 0.5 * step["ssm"] + OVER_BUDGET * over, rel=1e-4)
        assert "flow" not in step


def test_the_budget_is_a_share_of_how_much_a_colour_matrix_changes_content(styles: Path) -> None:
    budget = of(styles).step.energy.budget
    assert 0.005 < budget < 0.2
    assert of(styles, content_budget=1.2).step.energy.budget == pytest.approx(2 * budget)
    assert of(styles, route="noise").step.energy.budget == math.inf


def test_a_change_of_content_beyond_the_budget_weighs_more() -> None:
    energy, swd = Energy(style=1, content=0.5, budget=0.2), torch.tensor(0.0)
    assert float(energy(swd, torch.tensor(0.2))) == pytest.approx(0.1)
    assert float(energy(swd, torch.tensor(0.3))) == pytest.approx(0.15 + 0.1 * OVER_BUDGET)


def test_learning_between_styles_makes_the_translation_better_than_the_maps(styles: Path) -> None:
    task = of(styles, epochs=14, batch_size=4, width=16, lr=2e-3, content_budget=1.0)
    assert task.evaluate is not None
    before = task.evaluate()
    train(task, 14)
    after = task.evaluate()
    assert after["val/quality"] > before["val/quality"] + 0.01
    assert after["val/swd_train"] < before["val/swd_train"]


def test_learning_lowers_both_the_flow_loss_and_the_distance_to_the_style(styles: Path) -> None:
    task = of(
        styles, epochs=16, route="noise", anchor_epochs=8, batch_size=4, width=16, lr=5e-3, ode_integration_steps=2
    )
    flow = [step["flow"] for step in train(task, 16)]
    assert sum(flow[-10:]) < 0.92 * sum(flow[:10])
    assert task.evaluate is not None
    scores = task.evaluate()
    assert scores["val/swd_train"] < 0.8 * scores["val/swd_train_identity"]


def test_half_precision_needs_a_gpu_and_bfloat16_does_not(styles: Path) -> None:
    task = of(styles, epochs=2, amp="bf16", anchor_epochs=0)
    assert all(torch.isfinite(torch.tensor(step["loss"])) for step in train(task, 1))
    with pytest.raises(UsageError, match="Expected a CUDA device"):
        task.step.prepare(torch.device("cpu"), "fp16")
