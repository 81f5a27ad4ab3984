"""A resume with another kind of schedule or optimizer."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as schedules

from mltrain.errors import StateMismatch
from mltrain.restoring.built import Built
from mltrain.restoring.changes import Changes
from mltrain.schedules import settings_of
from tests.support.changed import MADE, STEPS, THEN, Config, close, trained


@pytest.mark.parametrize("name", [name for name in MADE if name != "none"])
@pytest.mark.parametrize("before", ["step", "one cycle", "sequential", "chained", "lambda"])
def test_a_schedule_of_another_kind_has_the_rates_of_a_training_that_had_it_from_the_start(
    name: str, before: str
) -> None:
    _, parts, _ = trained(Config(), MADE[before], THEN)
    expected, last, _ = trained(Config(), MADE[name], STEPS)
    got, resumed, _ = trained(Config(), MADE[name], STEPS, parts)
    assert close(got, expected[THEN:])
    assert resumed["scheduler"].keys() == last["scheduler"].keys()


MOMENTUM_TOO: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: schedules.StepLR(o, 4),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20, max_momentum=0.9, base_momentum=0.8),
    "one cycle of the rate": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 4, base_momentum=0.7, max_momentum=0.9),
    "short cyclic": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 3, base_momentum=0.7, max_momentum=0.9),
    "linear": lambda o: schedules.LinearLR(o, 0.1, 1.0, 10),
    "sequential": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 3), schedules.CosineAnnealingLR(o, 20)], [3]
    ),
    "sequential one cycle": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o, 0.5, 2), schedules.OneCycleLR(o, 0.1, total_steps=20)], [2]
    ),
    "chained": lambda o: schedules.ChainedScheduler([schedules.ConstantLR(o), schedules.ExponentialLR(o, 0.9)]),
    "lambda": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("now", MOMENTUM_TOO)
@pytest.mark.parametrize("before", MOMENTUM_TOO)
@pytest.mark.parametrize("adam", [False, True])
def test_momentum_after_a_change_of_schedule_is_that_of_a_training_that_had_it_from_the_start(
    before: str, now: str, adam: bool
) -> None:
    def made(name: str) -> tuple[Any, Any]:
        weights = nn.Linear(2, 1).parameters()
        optimizer: Any = AdamW(weights, 0.1, (0.9, 0.99)) if adam else SGD(weights, 0.1, momentum=0.9)
        return optimizer, MOMENTUM_TOO[name](optimizer)

    def stepped(optimizer: Any, schedule: Any, steps: int) -> dict[str, Any]:
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        (group,) = settings_of(optimizer)
        return {**group, "betas": None, "beta1": group.get("betas", (None,))[0]}

    optimizer, schedule = made(before)
    built = Built({"optimizer": optimizer, "scheduler": schedule})
    stepped(optimizer, schedule, THEN)
    saved = {
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "progress": {"built": built.record},
    }
    resumed, again = made(now)
    changes = Changes(Built({"optimizer": resumed, "scheduler": again}), saved, {})
    resumed.load_state_dict(changes.parts["optimizer"])
    again.load_state_dict(changes.parts["scheduler"])
    changes.apply({"optimizer": [0]})
    expected = made(now)
    assert stepped(resumed, again, 0) == pytest.approx(stepped(*expected, THEN))
    assert stepped(resumed, again, 3) == pytest.approx(stepped(*expected, 3))


def test_a_member_of_another_kind_is_a_schedule_of_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    def decaying(optimizer: Optimizer, config: Config) -> Any:
        warmup = schedules.LinearLR(optimizer, 0.1, 1.0, config.warmup_steps)
        return schedules.SequentialLR(optimizer, [warmup, schedules.ExponentialLR(optimizer, 0.8)], [3])

    _, parts, _ = trained(Config(), MADE["sequential"], THEN)
    got, _, _ = trained(Config(), decaying, STEPS, parts)
    assert close(got, trained(Config(), decaying, STEPS)[0][THEN:])
    assert "was a SequentialLR(LinearLR, CosineAnnealingLR)" in caplog.text
    assert f"continues at step {THEN} of the new plan" in caplog.text


@pytest.mark.parametrize("back", [False, True])
def test_a_schedule_cannot_follow_one_that_counts_something_else(back: bool) -> None:
    optimizer = SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    pair = [schedules.StepLR(optimizer, 4), schedules.ReduceLROnPlateau(optimizer)]
    one, other = reversed(pair) if back else pair
    before = Built({"optimizer": optimizer, "scheduler": one})
    saved = {"scheduler": one.state_dict(), "progress": {"built": before.record}}
    verb = "counts no steps" if back else "counts steps"
    expected = f"Expected one that {verb}, like {type(one).__name__} of the checkpoint, got {type(other).__name__}"
    with pytest.raises(StateMismatch, match=expected):
        Changes(Built({"optimizer": optimizer, "scheduler": other}), saved, {})


@pytest.mark.parametrize("now", ["cosine", "one cycle"])
@pytest.mark.parametrize("before", ["step", "cosine"])
def test_a_schedule_of_an_optimizer_that_is_no_part_is_stepped_too(
    before: str, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    def made(name: str, lr: float, steps: int) -> Any:
        optimizer = SGD(nn.Linear(2, 1).parameters(), lr=lr)
        schedule = MADE[name](optimizer, Config(lr=lr))
        built = Built({"scheduler": schedule})
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return schedule, built

    schedule, built = made(before, 0.1, THEN)
    saved = {"scheduler": schedule.state_dict(), "progress": {"built": built.record}}
    resumed, again = made(now, 0.2, 0)
    changes = Changes(again, saved, {})
    resumed.load_state_dict(changes.parts["scheduler"])
    changes.apply({})
    expected, _ = made(now, 0.2, THEN)
    assert resumed.last_epoch == THEN
    assert settings_of(resumed.optimizer) == settings_of(expected.optimizer)
    assert f"continues at step {THEN} of the new plan" in caplog.text


def test_going_back_behind_a_change_of_schedule_keeps_the_position_of_now(caplog: pytest.LogCaptureFixture) -> None:
    _, parts, _ = trained(Config(), MADE["step"], THEN)
    _, _, trainer = trained(Config(), MADE["cosine"], THEN + 4, parts)
    before = dict(trainer.state.parts["scheduler"].state_dict())
    caplog.clear()
    trainer.training.roll_back(parts)
    assert trainer.state.parts["scheduler"].state_dict()["last_epoch"] == before["last_epoch"] == THEN + 4
    assert f"continues at step {THEN + 4} of the new plan, counted in calls of the schedule's step()" in caplog.text


class Plateau(schedules.ReduceLROnPlateau):
    """A metric-driven schedule of one's own."""


class ByMetric:
    """A metric-driven schedule that is no subclass of torch's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.worse = optimizer, 0

    def step(self, value: float) -> None:
        self.worse += value > 0

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"worse": self.worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worse = state["worse"]


class Renamed(ByMetric):
    """The same schedule by another name."""


@pytest.mark.parametrize(
    ("before", "now"), [(schedules.ReduceLROnPlateau, Plateau), (Plateau, schedules.ReduceLROnPlateau)]
)
def test_a_metric_driven_schedule_of_another_class_keeps_its_state(before: Any, now: Any) -> None:
    optimizer = SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    one, other = before(optimizer), now(optimizer)
    built = Built({"optimizer": optimizer, "scheduler": one})
    one.step(0.5)
    saved = {"scheduler": one.state_dict(), "progress": {"built": built.record}}
    changes = Changes(Built({"optimizer": optimizer, "scheduler": other}), saved, {})
    other.load_state_dict(changes.parts["scheduler"])
    changes.apply({})
    assert other.best == 0.5


def test_a_renamed_schedule_of_ones_own_keeps_its_state(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    built = Built({"scheduler": ByMetric(optimizer)})
    saved = {"scheduler": {"worse": 3}, "progress": {"built": built.record}}
    changes = Changes(Built({"scheduler": Renamed(optimizer)}), saved, {})
    assert changes.parts["scheduler"] == {"worse": 3}
    assert "was a ByMetric and is a Renamed. It keeps the checkpoint's state" in caplog.text


@pytest.mark.parametrize("left_out", [["counting"], ["counting", "kinds"]])
def test_a_record_that_lacks_kinds_is_taken(left_out: list[str]) -> None:
    optimizer = SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    record = json.loads(Built({"scheduler": schedules.StepLR(optimizer, 4)}).record)
    for key in left_out:
        del record[key]
    saved = {"scheduler": {"last_epoch": 3}, "progress": {"built": json.dumps(record)}}
    parts = Changes(Built({"scheduler": schedules.ExponentialLR(optimizer, 0.5)}), saved, {}).parts
    assert parts["scheduler"]["last_epoch"] == (3 if "kinds" in left_out else 0)


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.RAdam])
def test_an_optimizer_of_another_kind_is_refused_although_its_settings_have_the_same_names(
    kind: Any,
) -> None:
    weights = [nn.Parameter(torch.ones(2))]
    saved = {"optimizer": {}, "progress": {"built": Built({"optimizer": torch.optim.Adam(weights)}).record}}
    with pytest.raises(StateMismatch, match=f"it was a Adam and is a {kind.__name__}"):
        Changes(Built({"optimizer": kind(weights)}), saved, {})
    Changes(Built({"optimizer": AdamW(weights)}), saved, {})  # the same state
