"""A loader that knows where it is."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import Loader, ResumableLoader
from mltrain.errors import StateMismatch, UsageError
from mltrain.rng import Rng, seed_everything
from tests.support.batches import epoch_of
from tests.support.equality import identical


class Noisy:
    """Items that tell their index and draw from all three generators."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        draws = [random.random(), float(np.random.randn()), float(torch.rand(()))]
        return index, torch.tensor(draws, dtype=torch.float64)


class Counted(Noisy):
    """Items fetched a batch at a time."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, torch.Tensor]]:
        return [(index, torch.tensor(random.random(), dtype=torch.float64)) for index in indices]


def loader(size: int = 10, batch_size: int = 3, **options: Any) -> ResumableLoader:
    return ResumableLoader(Noisy(size), batch_size, **{"seed": 5, **options})


def order(batches: list[Any]) -> list[int]:
    return [int(index) for batch in batches for index in batch[0]]


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
    """A run that an earlier release left in the middle of an epoch has to go on with the same items."""
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


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_number_of_workers_changes_nothing() -> None:
    alone, helped = loader(), loader(num_workers=2)
    before = Rng().state_dict()
    assert identical(epoch_of(helped), epoch_of(alone))
    assert identical(Rng().state_dict(), before), "the random numbers of the training are left alone"


def test_fetching_leaves_the_random_numbers_of_the_training_as_they_were() -> None:
    seed_everything(1)
    before = Rng().state_dict()
    epoch_of(loader())
    assert identical(Rng().state_dict(), before)


def test_a_mistake_in_the_data_leaves_the_random_numbers_of_the_training_as_they_were() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> Any:
            random.random()
            raise OSError("unreadable")

    before = Rng().state_dict()
    with pytest.raises(OSError, match="unreadable"):
        epoch_of(ResumableLoader(Broken(3), 2))
    assert identical(Rng().state_dict(), before)


def test_the_random_numbers_of_the_training_do_not_change_the_data() -> None:
    seed_everything(1)
    one = epoch_of(loader())
    seed_everything(2)
    torch.rand(7)
    assert identical(epoch_of(loader()), one)


def test_every_batch_of_every_epoch_has_draws_of_its_own() -> None:
    batches = loader()
    draws = [float(batch[1][0, 0]) for _ in range(3) for batch in batches]
    assert len(set(draws)) == len(draws) == 12


@pytest.mark.parametrize("seed_samples", [True, False])
def test_only_with_a_seed_for_every_sample_it_does_not_matter_what_the_others_draw(seed_samples: bool) -> None:
    class Greedy(Noisy):
        def __getitem__(self, index: int) -> Any:
            if index == 0:
                torch.rand(5)
                random.random()
            return super().__getitem__(index)

    def draws(dataset: Noisy) -> list[torch.Tensor]:
        return next(iter(ResumableLoader(dataset, 6, seed=1, shuffle=False, seed_samples=seed_samples)))[1][1:]

    assert identical(draws(Greedy(6)), draws(Noisy(6))) == seed_samples


class Counting:
    """Items that each hold how many were fetched up to it."""

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


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_pinned_batches_leave_the_random_numbers_of_the_training_alone() -> None:
    before = Rng().state_dict()
    assert identical(epoch_of(loader(pin_memory=True)), epoch_of(loader()))
    assert identical(Rng().state_dict(), before)


def test_a_dataset_may_fetch_a_batch_at_a_time() -> None:
    batches = ResumableLoader(Counted(5), 2, seed=3)
    assert sorted(order(epoch_of(batches))) == list(range(5))


def test_the_seed_is_that_of_the_training_when_none_is_given() -> None:
    torch.manual_seed(77)
    assert ResumableLoader(Noisy(4), 2).seed == 77


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
        (lambda: ResumableLoader(Noisy(3), 0), "Expected at least 1"),
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


@pytest.mark.parametrize("items", [40, 41, 47])
@pytest.mark.parametrize("drop_last", [False, True])
def test_several_processes_share_each_batch_without_doing_an_item_twice_or_leaving_one_out(
    items: int, drop_last: bool
) -> None:
    def loader(rank: int, ranks: int) -> ResumableLoader:
        made = ResumableLoader(range(items), 8, seed=3, drop_last=drop_last, collate=list)
        if ranks > 1:
            made.divide(rank, ranks)
        return made

    def parts(loader: ResumableLoader) -> list[list[int]]:
        return [batch if loader.weight else [] for batch in loader]

    def joined(of_ranks: list[list[list[int]]]) -> list[list[int]]:
        return [[item for part in of_batch for item in part] for of_batch in zip(*of_ranks, strict=True)]

    alone = loader(0, 1)
    whole = [batch for _ in range(2) for batch in alone]
    for ranks in range(2, 9):
        divided = [loader(rank, ranks) for rank in range(ranks)]
        shared = [[part for _ in range(2) for part in parts(one)] for one in divided]
        assert joined(shared) == whole, ranks
        assert {str(one.state_dict()) for one in divided} == {str(alone.state_dict())}

    position = loader(1, 3)  # in the middle of an epoch, from which another number of processes goes on
    assert len([batch for batch, _ in zip(position, range(2), strict=False)]) == 2
    state = position.state_dict()
    rest = []
    for rank in range(2):
        other = loader(rank, 2)
        other.load_state_dict(state)
        rest.append(parts(other))
    assert joined(rest) == whole[state["batch"] : len(alone)]


def test_what_augmentation_draws_does_not_depend_on_how_many_processes_there_are() -> None:
    drawn = {}
    for ranks in (2, 3):
        loaders = [ResumableLoader(Noisy(24), 6, seed=3, collate=list) for _ in range(ranks)]
        for rank, one in enumerate(loaders):
            one.divide(rank, ranks)
        items = [item for one in loaders for batch in one for item in batch]
        drawn[ranks] = sorted((index, *draws.tolist()) for index, draws in items)
    assert drawn[2] == drawn[3]


def test_a_batch_has_an_item_for_every_process() -> None:
    with pytest.raises(UsageError, match="batch_size=3 is shared by 4 processes"):
        ResumableLoader(range(44), 3).divide(0, 4)
