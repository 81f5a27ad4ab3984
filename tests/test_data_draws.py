"""What items draw while a loader fetches them: the same numbers every time, and none of the training's."""

import random
from typing import Any

import pytest
import torch

from mltrain.data import ResumableLoader
from mltrain.rng import Rng, seed_everything
from tests.support.batches import epoch_of
from tests.support.equality import identical
from tests.support.items import Noisy, loader


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


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_pinned_batches_leave_the_random_numbers_of_the_training_alone() -> None:
    before = Rng().state_dict()
    assert identical(epoch_of(loader(pin_memory=True)), epoch_of(loader()))
    assert identical(Rng().state_dict(), before)


def test_the_seed_is_that_of_the_training_when_none_is_given() -> None:
    torch.manual_seed(77)
    assert ResumableLoader(Noisy(4), 2).seed == 77
