"""Ranks that cannot connect end in time."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mltrain.distributed.joining import within
from tests.support.servers import free_port
from tests.support.workplace import Started, Workplace

LONG = "1800"


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
