"""Who holds a run knows it, and who has lost it notices before it writes."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import mltrain.tracking.lease as lease_module
from mltrain.errors import TrackingError
from mltrain.tracking.attempts import CLAIM, HEARTBEAT_TAG
from mltrain.tracking.lease import Lease
from mltrain.tracking.server import Refusal, Server

RUN = "a" * 32


class Client:
    """A tracking server that holds one run."""

    def __init__(self) -> None:
        self.attempts = 1
        self.status = "RUNNING"
        self.stage = "active"
        self.answers = True
        self.asked = 0
        self.beats: list[str] = []

    def get_run(self, run_id: str) -> Any:
        self.asked += 1
        if not self.answers:
            raise ConnectionError("reset")
        params = {f"{CLAIM}{attempt}": "somebody" for attempt in range(1, self.attempts + 1)}
        info = SimpleNamespace(run_id=run_id, lifecycle_stage=self.stage, status=self.status)
        return SimpleNamespace(info=info, data=SimpleNamespace(params=params))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        assert key == HEARTBEAT_TAG
        self.beats.append(value)

    def update_run(self, run_id: str, status: str) -> None:
        self.status = status


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def lease(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.05)
    held = Lease(Server("http://127.0.0.1:1", client), 1)
    held.begin(RUN)
    yield held
    held.close()


def asleep(lease: Lease) -> None:
    """Let the process have been stopped for as long as makes it doubt."""
    lease._tick = time.monotonic() - lease_module._ASLEEP_SECONDS - 1


def test_keeping_beats_once_in_a_while_and_not_at_every_request(lease: Lease, client: Client) -> None:
    for _ in range(20):
        assert lease.keep()
    assert client.beats == ["1.1"]
    time.sleep(0.06)
    assert lease.keep()
    assert client.beats == ["1.1", "1.2"]


def test_a_later_claim_of_another_ends_the_hold_for_good(lease: Lease, client: Client) -> None:
    client.attempts = 2
    time.sleep(0.06)
    assert not lease.keep()
    assert lease.overtaken.is_set()
    beats, asked = list(client.beats), client.asked
    client.attempts = 1
    assert not lease.keep()
    assert not lease.holds()
    assert (client.beats, client.asked) == (beats, asked)  # not another word to the server


def test_its_own_next_attempt_is_not_somebody_else(lease: Lease, client: Client) -> None:
    lease.follow(2)
    client.attempts = 2
    time.sleep(0.06)
    assert lease.keep()
    assert client.beats[-1].startswith("2.")


def test_holding_asks_nobody_while_the_process_was_awake(lease: Lease, client: Client) -> None:
    client.attempts = 2
    assert lease.holds()
    assert lease.holds(certainly=True)
    assert client.asked == 0


def test_who_was_asleep_asks_before_it_writes(lease: Lease, client: Client) -> None:
    client.attempts = 2
    asleep(lease)
    assert not lease.holds()


def test_doubt_outlives_the_tick_after_the_sleep(lease: Lease, client: Client) -> None:
    asleep(lease)
    deadline = time.monotonic() + 5
    while not lease._in_doubt and time.monotonic() < deadline:
        time.sleep(0.05)
    client.attempts = 2
    assert not lease.holds()


def test_who_was_asleep_and_cannot_ask_goes_on_but_does_not_act_for_certain(lease: Lease, client: Client) -> None:
    client.answers = False
    asleep(lease)
    assert lease.holds()
    assert not lease.holds(certainly=True)
    client.answers = True
    assert lease.holds(certainly=True)


def test_a_server_that_does_not_answer_is_told_to_who_keeps(lease: Lease, client: Client) -> None:
    client.answers = False
    time.sleep(0.06)
    with pytest.raises(TrackingError) as caught:
        lease.keep()
    assert isinstance(caught.value, Refusal)
    assert not caught.value.permanent
    assert not lease.overtaken.is_set()


def test_a_deleted_run_is_said_and_gets_no_heartbeat_until_it_is_restored(lease: Lease, client: Client) -> None:
    client.stage = "deleted"
    time.sleep(0.06)
    assert lease.keep()
    assert lease.gone is not None
    assert "was deleted" in lease.gone
    assert client.beats == []
    client.stage = "active"
    time.sleep(0.06)
    assert lease.keep()
    assert lease.gone is None
    assert client.beats != []


def test_a_status_that_somebody_else_set_is_put_right_while_it_runs(lease: Lease, client: Client) -> None:
    client.status = "FINISHED"
    time.sleep(0.06)
    lease.keep()
    assert client.status == "RUNNING"
    lease.close()
    client.status = "FINISHED"
    time.sleep(0.06)
    lease.keep()
    assert client.status == "FINISHED"  # its own end is not somebody else's doing


def test_a_run_that_does_not_exist_yet_is_not_asked_for(client: Client) -> None:
    lease = Lease(Server("http://127.0.0.1:1", client), 1)
    try:
        assert lease.keep()
        asleep(lease)
        assert lease.holds(certainly=True)
        assert client.asked == 0
    finally:
        lease.close()
