"""A loader divided among several processes."""

import pytest

from mltrain.data import ResumableLoader
from mltrain.errors import UsageError
from tests.support.items import Noisy


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
