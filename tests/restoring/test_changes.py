"""What a resume does with hyper-parameters: changed ones take effect, all others go on."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as schedules

import mltrain
from mltrain.errors import StateMismatch
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from tests.support.changed import MADE, STEPS, THEN, Config, Make, close, settings, trained
from tests.support.equality import identical


@pytest.mark.parametrize(
    "changed", [{"lr": 0.004}, {"horizon": 40}, {"gamma": 0.25}, {"momentum": 0.5}, {"lr": 0.05, "horizon": 17}]
)
@pytest.mark.parametrize("name", MADE)
def test_rates_after_a_change_are_those_of_a_training_that_had_it_from_the_start(
    name: str, changed: dict[str, Any]
) -> None:
    _, parts, _ = trained(Config(), MADE[name], THEN)
    expected, _, _ = trained(Config(**changed), MADE[name], STEPS)
    got, _, _ = trained(Config(**changed), MADE[name], STEPS, parts)
    assert close(got, expected[THEN:])


@pytest.mark.parametrize("name", MADE)
def test_an_unchanged_resume_goes_on_bit_by_bit_and_says_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    expected, last, _ = trained(Config(), MADE[name], STEPS)
    _, parts, _ = trained(Config(), MADE[name], THEN)
    got, resumed, _ = trained(Config(), MADE[name], STEPS, parts)
    assert got == expected[THEN:]
    assert identical(resumed, last)
    assert caplog.text == ""


@pytest.mark.parametrize("name", [name for name in MADE if name != "lambda" and name != "multiplicative"])
def test_checkpoints_that_recorded_nothing_are_compared_by_what_they_hold(name: str) -> None:
    _, parts, _ = trained(Config(), MADE[name], THEN)
    del parts["progress"]["built"]
    same, _, _ = trained(Config(), MADE[name], STEPS, parts)
    assert close(same, trained(Config(), MADE[name], STEPS)[0][THEN:])
    expected, _, _ = trained(Config(lr=0.004), MADE[name], STEPS)
    got, _, _ = trained(Config(lr=0.004), MADE[name], STEPS, parts)
    assert close(got, expected[THEN:])


def test_a_rate_that_was_set_by_hand_stays_unless_it_is_changed() -> None:
    _, parts, _ = trained(Config(), MADE["none"], THEN)
    parts["optimizer"]["param_groups"][0]["lr"] = 0.07
    assert trained(Config(), MADE["none"], STEPS, parts)[0][0][0]["lr"] == 0.07
    assert trained(Config(weight_decay=0.1), MADE["none"], STEPS, parts)[0][0][0]["lr"] == 0.07
    assert trained(Config(weight_decay=0.1), MADE["none"], STEPS, parts)[0][0][0]["weight_decay"] == 0.1
    assert trained(Config(lr=0.03), MADE["none"], STEPS, parts)[0][0][0]["lr"] == 0.03


def test_a_change_is_named_with_both_values(caplog: pytest.LogCaptureFixture) -> None:
    _, parts, _ = trained(Config(), MADE["none"], THEN)
    trained(Config(weight_decay=0.1), MADE["none"], THEN, parts)
    assert "weight_decay of group 1 of optimizer from 0.0 to 0.1" in caplog.text
    assert "momentum" not in caplog.text


def test_a_change_is_a_change_once() -> None:
    _, parts, _ = trained(Config(), MADE["cosine"], THEN)
    expected, last, _ = trained(Config(lr=0.01), MADE["cosine"], STEPS, parts)
    _, middle, _ = trained(Config(lr=0.01), MADE["cosine"], THEN + 3, parts)
    got, again, _ = trained(Config(lr=0.01), MADE["cosine"], STEPS, middle)
    assert got == expected[3:]
    assert identical(again, last)


def test_a_plan_that_is_shorter_than_what_is_done_is_refused() -> None:
    _, parts, _ = trained(Config(), MADE["one cycle"], THEN)
    with pytest.raises(StateMismatch, match="its new plan ends earlier"):
        trained(Config(horizon=4), MADE["one cycle"], STEPS, parts)


def plateau(mode: Any = "min", patience: int = 3) -> Make:
    return lambda o, c: schedules.ReduceLROnPlateau(o, mode, c.gamma, patience)


def test_a_plateau_keeps_what_it_has_seen_and_takes_what_was_changed() -> None:
    def built(config: Config, make: Make) -> tuple[Any, Any, Any]:
        net = nn.Linear(2, 1)
        optimizer = AdamW(net.parameters(), lr=config.lr)
        schedule = make(optimizer, config)
        x = torch.ones(4, 2)
        task = mltrain.Task(
            mltrain.Supervised(net, nn.MSELoss(), optimizer),
            mltrain.ResumableLoader(torch.utils.data.TensorDataset(x, x[:, :1]), 1),
            state={"scheduler": schedule},
        )
        saver = MemorySaver()
        return mltrain.Trainer(task, config, MemoryTracker(), saver, StopAt(None)), schedule, saver

    trainer, schedule, saver = built(Config(), plateau())
    for value in [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]:
        schedule.step(value)
    assert schedule.optimizer.param_groups[0]["lr"] == 0.05
    trainer.save("step")
    parts = saver.checkpoints[-1].parts()

    def resumed(config: Config, make: Make) -> Any:
        again, schedule, _ = built(config, make)
        again.restore(copy.deepcopy(parts))
        return schedule

    same = resumed(Config(), plateau())
    assert (same.optimizer.param_groups[0]["lr"], same.best, same.num_bad_epochs) == (0.05, 1.0, 1)
    slower = resumed(Config(lr=0.03), plateau())
    assert (slower.optimizer.param_groups[0]["lr"], slower.best) == (0.03, 1.0)
    patient = resumed(Config(gamma=0.1), plateau(patience=9))
    assert (patient.optimizer.param_groups[0]["lr"], patient.patience, patient.factor) == (0.05, 9, 0.1)
    assert (patient.best, patient.num_bad_epochs) == (1.0, 1)
    upward = resumed(Config(), plateau(mode="max"))
    assert (upward.mode, upward.best) == ("max", -math.inf)


def test_a_part_of_ones_own_takes_what_was_changed_and_keeps_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    _, parts, _ = trained(Config(), MADE["none"], THEN)
    parts["average"] = {"decay": 0.99, "shadow": torch.ones(2), "updates": 4}
    _, _, same = trained(Config(), MADE["none"], THEN, parts)
    assert same.state.parts["average"].state_dict()["decay"] == 0.99
    _, _, trainer = trained(Config(decay=0.5), MADE["none"], THEN, parts)
    average = trainer.state.parts["average"].state_dict()
    assert (average["decay"], average["updates"], average["shadow"].tolist()) == (0.5, 4, [1.0, 1.0])
    assert "average.decay from 0.99 to 0.5" in caplog.text


def test_changed_keys_that_reach_nothing_that_is_restored_are_named(caplog: pytest.LogCaptureFixture) -> None:
    _, parts, _ = trained(Config(), MADE["none"], THEN)
    trained(Config(loss_weight=2.0), MADE["none"], THEN, parts)
    assert caplog.text == ""  # the loss is built with it
    trained(Config(gamma=0.1), MADE["none"], THEN, parts)
    assert "gamma was changed from 0.5 to 0.1, but changed no optimizer" in caplog.text
    trained(Config(seed=3), MADE["none"], THEN, parts)
    assert "seed was changed from 0 to 3" in caplog.text


def test_the_best_by_another_metric_begins_anew() -> None:
    _, parts, _ = trained(Config(), MADE["none"], THEN)
    parts["best"] |= {"value": 0.5, "epoch": 1, "step": 3}
    parts["stopping"] |= {"best": 0.5, "best_epoch": 1, "without_improvement": 2}
    _, _, same = trained(Config(), MADE["none"], THEN, parts)
    assert (same.best.value, same.stopping.without_improvement) == (0.5, 2)
    for changed in ({"best_metric": "val/dice"}, {"best_mode": "max"}):
        _, _, other = trained(Config(**changed), MADE["none"], THEN, parts)
        assert (other.best.value, other.stopping.best, other.stopping.without_improvement) == (None, None, 0)
    for name in ("best", "stopping"):
        del parts[name]["judged_by"]  # as releases before wrote it
    _, _, old = trained(Config(best_mode="max"), MADE["none"], THEN, parts)
    assert (old.best.value, old.stopping.best) == (0.5, 0.5)


def test_the_record_is_one_line_of_text_beside_the_counters() -> None:
    _, parts, _ = trained(Config(), MADE["cosine"], THEN)
    record = json.loads(parts["progress"]["built"])
    assert record["parts"]["optimizer"][1]["initial_lr"] == pytest.approx(0.01)
    assert record["parts"]["scheduler"]["T_max"] == 20


def test_keys_of_the_configuration_that_reach_nothing_leave_the_state_as_it_is() -> None:
    _, one, _ = trained(Config(), MADE["cosine"], THEN)
    _, other, _ = trained(Config(gamma=0.1, loss_weight=1.0), MADE["cosine"], THEN)
    assert identical(one, other)


def test_groups_in_another_order_take_their_changes_along() -> None:
    def trainer(lr: float, turn: int) -> tuple[mltrain.Trainer, MemorySaver]:
        net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)})
        groups = [{"params": net["a"].parameters(), "lr": lr}, {"params": net["b"].parameters(), "lr": 0.01}][::turn]
        optimizer = SGD(groups, momentum=0.9)
        schedule = schedules.ExponentialLR(optimizer, 0.5)
        x = torch.ones(4, 2)
        step = mltrain.Supervised(net, nn.MSELoss(), optimizer, scheduler=schedule)
        task = mltrain.Task(step, mltrain.ResumableLoader(torch.utils.data.TensorDataset(x, x), 1))
        saver = MemorySaver()
        return mltrain.Trainer(task, Config(), MemoryTracker(), saver, StopAt(None)), saver

    first, saver = trainer(0.1, 1)
    optimizer, schedule = first.state.parts["optimizer"], first.state.parts["scheduler"]
    assert isinstance(optimizer, Optimizer)
    assert isinstance(schedule, schedules.LRScheduler)
    optimizer.step()
    schedule.step()
    first.save("step")
    for lr, turn, expected in [(0.1, 1, [0.05, 0.005]), (0.1, -1, [0.005, 0.05]), (0.4, -1, [0.005, 0.2])]:
        other, _ = trainer(lr, turn)
        other.restore(saver.checkpoints[-1].parts())
        optimizer = other.state.parts["optimizer"]
        assert isinstance(optimizer, Optimizer)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


def test_going_back_after_a_loss_that_is_not_finite_keeps_the_rate_of_now() -> None:
    _, parts, _ = trained(Config(), MADE["none"], THEN)
    _, _, trainer = trained(Config(lr=0.01, weight_decay=0.5), MADE["none"], THEN, parts)
    trainer.training.roll_back(parts)
    optimizer = trainer.state.parts["optimizer"]
    assert isinstance(optimizer, Optimizer)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.01, 0.5), (0.001, 0.5)]


def test_going_back_does_not_take_the_rate_back_that_a_schedule_has_moved_since() -> None:
    _, parts, _ = trained(Config(), MADE["exponential"], THEN)
    rates, _, trainer = trained(Config(), MADE["exponential"], THEN + 4)
    trainer.training.roll_back(parts)
    optimizer = trainer.state.parts["optimizer"]
    assert isinstance(optimizer, Optimizer)
    assert settings(optimizer) == rates[-1]
