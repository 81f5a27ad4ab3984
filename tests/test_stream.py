"""Iterable data that know where they are."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import ResumableLoader
from mltrain.errors import UsageError
from mltrain.rng import Rng, seed_everything
from mltrain.stream import StreamLoader
from tests.support.batches import epoch_of
from tests.support.equality import identical


class Stream:
    """An iterable dataset that can say where it is: it goes on from there, and begins anew once exhausted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = 0

    def __iter__(self) -> Iterator[tuple[int, float]]:
        while self.position < self.size:
            self.position += 1
            yield self.position - 1, random.random()
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 20), batch_size=st.integers(1, 7), stop=st.integers(0, 30), drop_last=st.booleans())
def test_a_stream_interrupted_anywhere_goes_on_with_the_rest(
    size: int, batch_size: int, stop: int, drop_last: bool
) -> None:
    """The ends of epochs are marked in the expected batches."""
    batch_size = min(batch_size, size)

    def fresh(seed: int = 5) -> StreamLoader:
        return StreamLoader(Stream(size), batch_size, seed=seed, drop_last=drop_last)

    def marked(batches: StreamLoader) -> Iterator[Any]:
        while True:
            yield from batches
            yield "end of epoch"

    whole = marked(fresh())
    expected = [next(whole) for _ in range(stop + 5)]
    broken = fresh()
    begun = marked(broken)
    got = [next(begun) for _ in range(stop)]
    resumed = fresh(0)
    resumed.load_state_dict(broken.state_dict())
    rest = marked(resumed)
    got += [next(rest) for _ in range(5)]
    assert identical(got, expected)


def test_a_stream_leaves_the_random_numbers_of_the_training_alone() -> None:
    seed_everything(3)
    before = Rng().state_dict()
    assert len(epoch_of(StreamLoader(Stream(7), 3, seed=1))) == 3
    assert identical(Rng().state_dict(), before)


def test_an_iterable_that_cannot_say_where_it_is_is_refused_with_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"state_dict\(\) and load_state_dict\(\)"):
        StreamLoader(iter([1, 2]), 1)
    with pytest.raises(UsageError, match="StreamLoader"):
        ResumableLoader(Stream(4), 2)


@pytest.mark.parametrize("given", [0, -1, 2.5, 2.0, np.float32(2.5), True, "2", None, torch.tensor([2, 3])], ids=repr)
def test_a_batch_size_that_is_no_whole_number_is_refused_by_both_loaders(given: Any) -> None:
    for make in (lambda: ResumableLoader(range(4), given), lambda: StreamLoader(Stream(4), given)):
        with pytest.raises(UsageError, match=r"batch_size=.* is invalid\. Expected a whole number of at least 1\."):
            make()


def test_a_batch_size_of_numpy_becomes_one_of_python() -> None:
    size: Any = np.int64(2)
    assert type(ResumableLoader(range(4), size).state_dict()["batch_size"]) is int
    assert type(StreamLoader(Stream(4), size).batch_size) is int
