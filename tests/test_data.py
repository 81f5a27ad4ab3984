"""A loader that knows where it is."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import Loader, ResumableLoader
from mltrain.errors import StateMismatch, UsageError
from tests.support.batches import epoch_of
from tests.support.equality import identical
from tests.support.items import Noisy, loader, order


class Counted(Noisy):
    """Items fetched a batch at a time."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, torch.Tensor]]:
        return [(index, torch.tensor(random.random(), dtype=torch.float64)) for index in indices]


def test_an_epoch_has_every_item_once_in_an_order_of_its_own() -> None:
    batches = loader()
    first, second = epoch_of(batches), epoch_of(batches)
    assert sorted(order(first)) == sorted(order(second)) == list(range(10))
    assert order(first) != order(second)
    assert [len(batch[0]) for batch in first] == [3, 3, 3, 1]
    assert (batches.epoch, batches.batch, len(batches)) == (2, 0, 4)


def test_without_shuffling_items_come_as_they_stand() -> None:
    assert order(epoch_of(loader(shuffle=False))) == list(range(10))


def test_a_last_incomplete_batch_can_be_left_out() -> None:
    batches = loader(drop_last=True)
    assert [len(batch[0]) for batch in epoch_of(batches)] == [3, 3, 3]
    assert len(batches) == 3


def test_weights_draw_items_in_proportion() -> None:
    drawn = order(epoch_of(loader(300, 50, weights=[1.0] * 100 + [0.0] * 100 + [3.0] * 100)))
    assert len(drawn) == 300
    assert not any(100 <= index < 200 for index in drawn)
    assert sum(index >= 200 for index in drawn) > sum(index < 100 for index in drawn)


def test_orders_are_those_of_earlier_releases() -> None:
    """An earlier release's interrupted epoch continues with the same items."""
    weighted = loader(12, 4, weights=[float(number % 4) for number in range(12)])
    assert order(epoch_of(loader())) == [3, 5, 6, 2, 7, 4, 1, 9, 0, 8]
    assert order(epoch_of(weighted)) == [1, 10, 5, 6, 5, 7, 6, 7, 6, 10, 6, 11]


def test_more_weights_than_torch_draws_from_at_once() -> None:
    size = 2**24 + 3
    weights = torch.zeros(size)
    weights[[5, 2**24, size - 1]] = torch.tensor([1.0, 2.0, 1.0])
    batches = ResumableLoader(range(size), 1000, weights=weights, seed=3)
    begun = iter(batches)
    counts = torch.bincount(next(begun), minlength=size)
    assert counts.nonzero().flatten().tolist() == [5, 2**24, size - 1]
    assert 420 < counts[2**24] < 580
    resumed = ResumableLoader(range(size), 1000, weights=weights, seed=0)
    resumed.load_state_dict(batches.state_dict())
    assert identical(next(iter(resumed)), next(begun))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 20),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 2**63),
    stop=st.integers(0, 40),
    shuffle=st.booleans(),
    samples=st.booleans(),
)
def test_interrupted_anywhere_the_rest_is_the_same(
    size: int, batch_size: int, seed: int, stop: int, shuffle: bool, samples: bool
) -> None:
    def fresh(seed: int) -> ResumableLoader:
        return ResumableLoader(Noisy(size), batch_size, seed=seed, shuffle=shuffle, seed_samples=samples)

    def endless(batches: ResumableLoader) -> Iterator[Any]:
        while True:
            yield from batches

    whole = endless(fresh(seed))
    expected = [next(whole) for _ in range(stop + 5)]
    broken = fresh(seed)
    begun = endless(broken)
    got = [next(begun) for _ in range(stop)]
    resumed = fresh(0)  # the seed comes with the position
    resumed.load_state_dict(broken.state_dict())
    rest = endless(resumed)
    got += [next(rest) for _ in range(5)]
    assert identical(got, expected)


def test_a_loop_that_was_left_goes_on_where_it_was() -> None:
    batches, whole = loader(), epoch_of(loader())
    got = []
    for batch in batches:
        got.append(batch)
        if len(got) == 2:
            break
    assert identical([*got, *batches], whole)


class Counting:
    """Items that hold the number of fetches so far."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fetched = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.fetched += 1
        return index, self.fetched


class Resumable(Counting):
    def state_dict(self) -> dict[str, int]:
        return {"fetched": self.fetched}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.fetched = state["fetched"]


def test_no_item_is_fetched_before_its_batch_is_asked_for() -> None:
    dataset, collated = Counting(40), []

    def collate(items: list[Any]) -> list[Any]:
        collated.append(len(items))
        return items

    seen = [(dataset.fetched, len(collated)) for _ in ResumableLoader(dataset, 4, seed=1, collate=collate)]
    assert seen == [(4 * batch, batch) for batch in range(1, 11)]


@pytest.mark.parametrize("stop", [1, 3, 10, 14])
def test_a_dataset_with_a_state_of_its_own_goes_on_with_it(stop: int) -> None:
    def endless(batches: ResumableLoader) -> Iterator[Any]:
        while True:
            yield from batches

    whole = endless(ResumableLoader(Resumable(40), 4, seed=1))
    expected = [next(whole) for _ in range(20)]
    broken = ResumableLoader(Resumable(40), 4, seed=1)
    begun = endless(broken)
    got = [next(begun) for _ in range(stop)]
    resumed = ResumableLoader(Resumable(40), 4, seed=1)
    resumed.load_state_dict(broken.state_dict())
    rest = endless(resumed)
    got += [next(rest) for _ in range(20 - stop)]
    assert identical(got, expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_copies_of_a_dataset_in_workers_leave_no_state_behind() -> None:
    helped = ResumableLoader(Resumable(8), 4, num_workers=1)
    epoch_of(helped)
    assert "dataset" not in helped.state_dict()
    alone = ResumableLoader(Resumable(8), 4)
    epoch_of(alone)
    helped.load_state_dict(alone.state_dict())
    assert helped.dataset.fetched == 0
    old = {key: value for key, value in alone.state_dict().items() if key != "dataset"}
    alone.load_state_dict(old)
    assert alone.dataset.fetched == 8, "a checkpoint without a state of the dataset leaves it as it is"


def test_a_dataset_may_fetch_a_batch_at_a_time() -> None:
    batches = ResumableLoader(Counted(5), 2, seed=3)
    assert sorted(order(epoch_of(batches))) == list(range(5))


def test_a_batch_may_be_made_by_a_function_of_ones_own() -> None:
    class Batch(NamedTuple):
        indices: list[int]

    batches = ResumableLoader(Noisy(4), 4, shuffle=False, collate=lambda items: Batch([item[0] for item in items]))
    assert epoch_of(batches) == [Batch([0, 1, 2, 3])]


def test_other_data_in_the_middle_of_an_epoch_are_refused_and_at_its_end_accepted() -> None:
    batches = loader()
    next(iter(batches))
    middle = batches.state_dict()
    with pytest.raises(StateMismatch, match="items: 10 then, 12 now"):
        loader(12).load_state_dict(middle)
    with pytest.raises(StateMismatch, match="batch_size: 3 then, 4 now"):
        loader(10, 4).load_state_dict(middle)
    epoch_of(batches)
    other = loader(12, 4)
    other.load_state_dict(batches.state_dict())
    assert (other.epoch, other.batch) == (1, 0)


def test_a_position_is_plain_data() -> None:
    batches = loader()
    next(iter(batches))
    assert batches.state_dict() == {"epoch": 0, "batch": 1, "seed": 5, "items": 10, "batch_size": 3}
    assert isinstance(batches, Loader)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: ResumableLoader(iter([1]), 1), "Expected a dataset with a length"),
        (lambda: ResumableLoader(Noisy(0), 2), "make no batch"),
        (lambda: ResumableLoader(Noisy(1), 2, drop_last=True), "make no batch"),
        (lambda: ResumableLoader(Noisy(3), 2, weights=[1.0, 2.0]), "2 weights for 3 items"),
        (lambda: ResumableLoader(Noisy(3), 2, weights=[1.0] * 3, shuffle=False), "excludes shuffle=False"),
    ],
)
def test_invalid_arguments_are_refused(make: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        make()


@pytest.mark.parametrize("weights", [[1, -1, 1], [0, 0, 0], [1, float("nan"), 1], [1, float("inf"), 1]])
def test_weights_that_are_no_proportions_are_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="The weights are invalid"):
        ResumableLoader(Noisy(3), 2, weights=weights)
