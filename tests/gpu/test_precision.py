"""Mixed precision on a CUDA device: the gradient scaler, its skipped steps, and what is not finite."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import mltrain
from mltrain.errors import NonFiniteLoss
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from tests.support import tiny
from tests.support.equality import identical

pytestmark = pytest.mark.gpu


def training(amp: str, saver: MemorySaver, stop: int | None = None, **more: Any) -> Any:
    mltrain.rng.seed_everything(1)
    net = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)
    step = mltrain.Supervised(net, nn.CrossEntropyLoss(), optimizer, scheduler=schedule, clip=1.0)
    task = mltrain.Task(step, mltrain.ResumableLoader(tiny.Noisy(64), 8))
    config = tiny.Config(**{"epochs": 3, "device": "cuda", "amp": amp, "save_every_steps": 1, **more})
    request = StopAt(stop)
    trainer = mltrain.Trainer(task, config, MemoryTracker(), saver, request)
    request.progress = trainer.progress
    return trainer


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_resumed_training_is_the_same_bit_by_bit(amp: str) -> None:
    whole, broken = MemorySaver(), MemorySaver()
    list(training(amp, whole).steps())
    for stop in (3, 12, None):
        trainer = training(amp, broken, stop)
        if broken.checkpoints:
            trainer.restore(broken.peek())
        list(trainer.steps())
        assert trainer.progress.step == (stop or 24)
    assert identical(broken.peek(), whole.peek())
    assert ("scaler" in whole.peek()) == (amp == "fp16")  # type: ignore[operator]


def test_a_step_that_the_scaler_leaves_out_changes_no_weight_and_halves_the_scale() -> None:
    saver = MemorySaver()
    trainer = training("fp16", saver)
    trainer.task.step.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.state.parts["scaler"] = trainer.task.step.scaler
    before = {name: tensor.clone() for name, tensor in trainer.task.step.model.named_parameters()}
    steps = trainer.steps()
    next(steps)
    left_out = saver.peek()
    assert left_out is not None
    assert left_out["scaler"]["scale"] == 2.0**39
    assert all(left_out["model"][name].equal(tensor.cpu()) for name, tensor in before.items())
    list(steps)
    after = saver.peek()
    assert after is not None
    assert after["scaler"]["scale"] < 2.0**39
    assert not any(after["model"][name].equal(tensor.cpu()) for name, tensor in before.items())
    assert all(bool(tensor.isfinite().all()) for tensor in after["model"].values())


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_what_is_not_a_number_ends_the_training_before_it_reaches_a_checkpoint(amp: str, what: str) -> None:
    saver = MemorySaver()
    trainer = training(amp, saver)
    step, count = trainer.task.step, [0]

    def wrong(gradient: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return gradient * math.nan if count[0] == 5 else gradient

    if what == "gradient":
        step.model[4].weight.register_hook(wrong)
    else:
        step.model.register_forward_hook(lambda _, __, output: wrong(output))
    if amp == "fp16" and what == "gradient":  # the scaler leaves it out, as one of the overflows that it looks for
        list(trainer.steps())
        assert len(saver.checkpoints) == 24
    else:
        with pytest.raises(NonFiniteLoss):
            list(trainer.steps())
        assert [kept.step for kept in saver.checkpoints][-1] == 4
    newest = saver.peek()
    assert newest is not None
    assert all(bool(tensor.isfinite().all()) for tensor in newest["model"].values())


def test_a_gradient_that_is_never_finite_ends_a_training_with_a_scaler_too() -> None:
    saver = MemorySaver()
    trainer = training("fp16", saver, epochs=6)
    trainer.task.step.model[4].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLoss):
        list(trainer.steps())
    assert trainer.progress.step == 31
