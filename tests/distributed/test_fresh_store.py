"""Restarted workers see no keys of earlier workers."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined] # it has one
from torch.distributed.distributed_c10d import PrefixStore

from mltrain.distributed.fresh_store import fresh_store

SECONDS = 20.0


def begun(store: HashStore, size: int) -> list[PrefixStore]:
    """Return the store of each rank of one start; the last rank comes first."""
    with ThreadPoolExecutor(size) as ranks:
        found = [ranks.submit(fresh_store, store, rank, size, SECONDS) for rank in reversed(range(size))]
        return [one.result() for one in reversed(found)]


def test_all_ranks_of_a_start_share_a_part_of_the_store_that_no_other_start_sees() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=SECONDS))
    first = begun(store, 3)
    first[0].set("address", "of the first")
    assert [one.get("address") for one in first] == [b"of the first"] * 3
    second = begun(store, 3)
    assert not any(one.check(["address"]) for one in second)
    second[1].set("address", "of the second")
    assert [one.get("address") for one in second] == [b"of the second"] * 3
    assert first[2].get("address") == b"of the first"


def test_a_rank_that_rank_0_does_not_answer_gives_up() -> None:
    store = HashStore()
    store.set("token", "of workers that are gone")
    with pytest.raises(RuntimeError, match="rank 0 did not answer"):
        fresh_store(store, 1, 2, 0.1)


def test_ranks_that_expect_different_numbers_of_ranks_are_refused_at_once() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=SECONDS))
    with ThreadPoolExecutor(2) as ranks:
        started = [ranks.submit(fresh_store, store, rank, size, 3 * SECONDS) for rank, size in ((1, 2), (0, 3))]
        for one in started:
            with pytest.raises(RuntimeError, match="WORLD_SIZE is 3 on rank 0 and 2 on rank 1"):
                one.result(SECONDS)
