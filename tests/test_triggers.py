"""When something is due."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrain.triggers import Every, Moment

moments = st.builds(
    Moment,
    step=st.integers(1, 100),
    epoch=st.integers(0, 20),
    epoch_ended=st.booleans(),
    seconds_since_save=st.floats(0, 10_000),
)
triggers = st.builds(Every, epochs=st.integers(0, 5), steps=st.integers(0, 5), minutes=st.floats(0, 100))


def at(step: int = 1, epoch: int = 0, *, ended: bool = False, seconds: float = 0.0) -> Moment:
    return Moment(step, epoch, ended, seconds)


def test_every_so_many_epochs_is_due_at_their_ends() -> None:
    due = [epoch for epoch in range(1, 8) if Every(epochs=3).due(at(epoch=epoch, ended=True))]
    assert due == [3, 6]
    assert not Every(epochs=3).due(at(epoch=3))


def test_every_so_many_steps_is_due_in_the_middle_of_an_epoch_too() -> None:
    assert [step for step in range(1, 13) if Every(steps=5).due(at(step))] == [5, 10]


def test_every_so_many_minutes_is_due_when_they_have_passed() -> None:
    assert not Every(minutes=2).due(at(seconds=119.9))
    assert Every(minutes=2).due(at(seconds=120))


@given(moments)
def test_what_is_zero_is_never_due(moment: Moment) -> None:
    assert not Every().due(moment)


@given(triggers, triggers, moments)
def test_a_join_is_due_when_either_is(one: Every, other: Every, moment: Moment) -> None:
    assert (one | other).due(moment) == (one.due(moment) or other.due(moment))
    assert (one | other | Every()).due(moment) == (one | other).due(moment)


@given(triggers, moments)
def test_one_trigger_of_three_intervals_is_three_triggers(trigger: Every, moment: Moment) -> None:
    apart = Every(epochs=trigger.epochs) | Every(steps=trigger.steps) | Every(minutes=trigger.minutes)
    assert apart.due(moment) == trigger.due(moment)


def test_a_trigger_is_a_value() -> None:
    assert Every(epochs=2) == Every(epochs=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Every().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"steps": -1}, {"minutes": -0.1}])
def test_an_interval_is_not_negative(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="negative"):
        Every(**wrong)  # type: ignore[arg-type]
