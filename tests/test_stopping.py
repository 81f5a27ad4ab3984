"""Early stopping."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrain.stopping import EarlyStopping, improves

finite = st.floats(-1e6, 1e6)
not_finite = st.sampled_from([math.nan, math.inf, -math.inf])
modes: Any = st.sampled_from(["min", "max"])


def watched(values: list[float], mode: Any = "min", patience: int | None = 2, min_delta: float = 0.0) -> EarlyStopping:
    stopping = EarlyStopping("val/loss", mode, patience, min_delta)
    for epoch, value in enumerate(values, 1):
        stopping.update(value, epoch)
    return stopping


def test_it_stops_when_nothing_was_better_for_so_long() -> None:
    stopping = watched([3, 2, 1, 1.5])
    assert (stopping.exhausted, stopping.best, stopping.best_epoch) == (False, 1, 3)
    stopping.update(1.0, 5)
    assert (stopping.exhausted, stopping.without_improvement) == (True, 2)


def test_an_improvement_begins_the_count_anew() -> None:
    assert not watched([3, 4, 2, 4]).exhausted
    assert watched([0.1, 0.2, 0.1, 0.1], mode="max").exhausted


def test_a_smaller_improvement_than_asked_for_is_none() -> None:
    assert watched([1.0, 0.95, 0.91], min_delta=0.1).exhausted
    assert not watched([1.0, 0.89, 0.78], min_delta=0.1).exhausted


def test_many_small_improvements_count_against_the_best_that_was_large_enough() -> None:
    assert watched([1.0, 0.95, 0.89], min_delta=0.1).best == 0.89


def test_without_patience_it_never_stops() -> None:
    assert not watched([1.0] * 100, patience=None).exhausted


@given(st.lists(finite | not_finite, max_size=12), st.integers(0, 12), modes, st.floats(0, 10))
def test_its_counters_survive_a_resume(values: list[float], stop: int, mode: Any, delta: float) -> None:
    whole = watched(values, mode, 3, delta)
    resumed = EarlyStopping("val/loss", mode, 3, delta)
    resumed.load_state_dict(watched(values[:stop], mode, 3, delta).state_dict())
    for epoch, value in list(enumerate(values, 1))[stop:]:
        resumed.update(value, epoch)
    assert (resumed.state_dict(), resumed.exhausted) == (whole.state_dict(), whole.exhausted)


def test_patience_may_change_on_a_resume() -> None:
    longer = EarlyStopping("val/loss", "min", 10)
    longer.load_state_dict(watched([1, 2, 3]).state_dict())
    assert not longer.exhausted


@given(not_finite, st.none() | finite | not_finite, modes)
def test_what_is_not_finite_is_never_better(value: float, over: float | None, mode: Any) -> None:
    assert not improves(value, over, mode)


@given(finite, not_finite, modes)
def test_whatever_is_finite_is_better_than_what_is_not(value: float, over: float, mode: Any) -> None:
    assert improves(value, over, mode)
    assert improves(value, None, mode)


@given(finite, finite, modes)
def test_of_two_values_at_most_one_is_better(a: float, b: float, mode: Any) -> None:
    assert improves(a, b, mode) + improves(b, a, mode) == (a != b)


@given(finite, finite, modes)
def test_less_is_better_exactly_where_more_is_not(a: float, b: float, mode: Any) -> None:
    other: Any = {"min": "max", "max": "min"}[mode]
    assert improves(a, b, mode) == improves(-a, -b, other)


def test_the_best_is_never_what_is_not_finite() -> None:
    assert watched([math.inf, math.nan]).best is None
    assert watched([-math.inf, 5.0]).best == pytest.approx(5.0)
