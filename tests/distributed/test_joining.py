"""Ranks connect in time, without the keys of earlier workers."""

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined] # it has one
from torch.distributed.distributed_c10d import PrefixStore

from mltrain.distributed.joining import fresh_store, peer_seconds, within
from mltrain.errors import UsageError
from tests.support.servers import free_port
from tests.support.workplace import Started, Workplace

LONG = "1800"
SECONDS = 20.0


@contextmanager
def mute_server() -> Iterator[tuple[str, threading.Event]]:
    """Listen on a port, and answer nothing; set the event at a connection."""
    connected = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with server.accept()[0]:
                connected.set()
                ended.wait(60)

        ended = threading.Event()
        thread = threading.Thread(target=accept)
        thread.start()
        yield str(server.getsockname()[1]), connected
        ended.set()
        thread.join(60)


def rank_1(place: Workplace, port: str, seconds: str) -> Started:
    launched = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return place.start("train", "ranked.py", **launched, MLTRAIN_PEER_SECONDS=seconds)


def test_a_server_of_another_kind_is_reported_within_the_time_limit(place: Workplace) -> None:
    with mute_server() as (port, _):
        done = rank_1(place, port, "1").wait(60)
    assert done.code == 1
    assert "Error: The ranks of this training did not connect: " in done.err
    assert f"got RANK=1, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT={port}. Try: " in done.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_rank_that_waits_for_others(number: signal.Signals, code: int, place: Workplace) -> None:
    with mute_server() as (port, connected):
        started = rank_1(place, port, LONG)
        assert connected.wait(60)
        started.child.kill(number)
        done = started.wait(60)
    assert done.code == code, done.err


def test_a_port_that_is_taken_is_reported_by_rank_0(place: Workplace) -> None:
    with socket.create_server(("127.0.0.1", int(free_port()))) as taken:
        launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        done = place.mltrain("train", "ranked.py", **launched, MASTER_PORT=str(taken.getsockname()[1]))
    assert done.code == 1
    assert "rank 0 on a free port of MASTER_ADDR, got RANK=0" in done.err


def test_an_error_of_the_function_is_raised_to_the_caller() -> None:
    with pytest.raises(KeyError):
        within(60.0, lambda: {}["none"])


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


def test_the_timeout_has_a_default_and_takes_numbers_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLTRAIN_PEER_SECONDS", raising=False)
    assert peer_seconds() == 1800.0
    monkeypatch.setenv("MLTRAIN_PEER_SECONDS", "2.5")
    assert peer_seconds() == 2.5


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "1e9"])
def test_any_other_timeout_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_PEER_SECONDS", given)
    with pytest.raises(UsageError, match="MLTRAIN_PEER_SECONDS is invalid"):
        peer_seconds()
