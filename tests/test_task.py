"""What a task refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mltrain.checkpoint.policies import Latest
from mltrain.errors import ConfigError, UsageError
from mltrain.task import Task, prepare_step
from tests.support import tiny
from tests.support.trainings import on_a_plateau, trained


def test_a_loader_that_cannot_say_where_it_is_is_refused_with_what_to_take() -> None:
    task = tiny.build(tiny.Config())
    with pytest.raises(UsageError, match=r"A DataLoader cannot report its position.*ResumableLoader"):
        Task(task.step, DataLoader([1, 2, 3]))  # type: ignore[arg-type]


def test_a_policy_that_is_none_is_refused() -> None:
    for wrong in ("Latest(3)", Latest):
        with pytest.raises(UsageError, match=r"policy=.* of the task is invalid.*Latest\(3\) \| Best\(1\)"):
            replace(tiny.build(tiny.Config()), policy=wrong)


def test_a_schedule_on_a_plateau_that_cannot_follow_its_metric_is_refused() -> None:
    for build, keys, said in (
        (on_a_plateau, {"best_mode": "max"}, r"Expected the mode of best_mode, 'max'"),
        (lambda config: on_a_plateau(config, mode="max"), {}, r"ReduceLROnPlateau\(mode='max'\)"),
        (lambda config: replace(on_a_plateau(config), evaluate=None), {}, r"no evaluate\(\) that measures it"),
    ):
        with pytest.raises(UsageError, match=said):
            trained(build, **keys)
    trained(lambda config: replace(on_a_plateau(config), evaluate=None), epochs=1, best_metric="train/loss")


def own_step(batch: Any) -> dict[str, float]:
    """A step that has no hook."""
    return {"loss": 1.0}


def with_own_step(**parts: Any) -> Task:
    return Task(own_step, tiny.build(tiny.Config()).loader, state=parts)


def net(device: str) -> nn.Module:
    return nn.Linear(2, 2, device=device)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_precision_that_a_step_of_ones_own_would_not_use_is_refused(amp: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"amp={amp} has no effect.*function.*Try: amp=off, or give the step a method"
    ):
        trained(lambda config: with_own_step(model=net("cpu")), amp=amp)


@pytest.mark.parametrize(("wanted", "there"), [("cuda", "cpu"), ("cuda:1", "cpu"), ("mps", "cpu"), ("cpu", "meta")])
def test_a_device_on_which_a_step_of_ones_own_has_no_parameters_is_refused(wanted: str, there: str) -> None:
    config, device = tiny.Config(device=wanted), torch.device(wanted)
    optimizer = torch.optim.SGD(net(there).parameters(), 0.1)
    for parts in ({"model": net(there)}, {"optimizer": optimizer}):
        with pytest.raises(ConfigError, match=rf"device={wanted} has no effect.*are on {there}.*Try: device={there}"):
            prepare_step(with_own_step(**parts), config, device)


def test_a_step_of_ones_own_on_another_device_than_auto_chose_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny.Config(device="auto")
    prepare_step(with_own_step(model=net("meta")), config, torch.device("meta"))
    prepare_step(with_own_step(model=net("cpu")), config, torch.device("cpu"))
    prepare_step(with_own_step(), config, torch.device("cpu"))
    assert not caplog.records
    prepare_step(with_own_step(model=net("cpu")), config, torch.device("cuda"))
    assert "device=auto chose cuda, but the step, a function, has no prepare" in caplog.text
    assert "its parameters are on cpu" in caplog.text
    caplog.clear()
    prepare_step(with_own_step(), tiny.Config(device="cuda"), torch.device("cuda"))
    assert "it has no parameters to tell" in caplog.text
